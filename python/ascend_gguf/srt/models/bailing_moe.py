"""Loading of Ling and Ring."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.direct_loading import load_parts


def repair_loading(model: Any, config: Any) -> None:
    """``BailingMoEForCausalLM``: q, k and v are apart in a file."""
    names = r"(?<=\.attention\.)([qkv])_proj(?=\.)"
    load_parts(model, names, "query_key_value", {part: part for part in "qkv"})
