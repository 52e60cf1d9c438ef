"""The engine's last check of its options, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.utils.hf_transformers.common import check_gguf_file

_SOURCE = "ascend_gguf.served_model_name"


def check_server_args(original: Callable, server_args: Any) -> None:
    """AROUND the engine's checks: a GGUF model may be served under a name with a colon.

    ``owner/repo:Q4_K_M`` is what the user typed, and what clients ask for.  The engine keeps the
    colon for ``model:adapter``, and yet knows a request for the exact name of the model.
    """
    found = resolving_view(server_args)
    name = found.served_model_name
    if name is None or ":" not in name or not check_gguf_file(found.model_path):
        return original(server_args)
    declare_resolution(server_args, _SOURCE, served_model_name=name.replace(":", "-"))
    try:
        return original(server_args)
    finally:
        declare_resolution(server_args, _SOURCE, served_model_name=name)
