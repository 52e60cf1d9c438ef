"""Llama 4: loading, and the rotary embedding."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.device import uses_ascend_methods
from ascend_gguf.srt.models.gpt_oss import load_weights
from ascend_gguf.srt.models.rotary import set_rotary_style

__all__ = ["load_weights", "turn_pairs"]


def turn_pairs(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Llama4Attention.__init__``: turn neighbouring rows of a head, as the model does.

    The engine does so for GGUF where the configuration is not that of the text model alone.
    """
    if uses_ascend_methods() and self.rotary_emb is not None:
        set_rotary_style(self, kwargs["config"], is_neox_style=False)
