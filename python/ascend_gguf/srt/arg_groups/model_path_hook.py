"""Checking a GGUF model before the engine starts anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.architectures import architecture_of
from ascend_gguf.config import load_config
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt.device import uses_ascend_methods
from ascend_gguf.srt.model_loader.loader import checked_options
from ascend_gguf.srt.utils.hf_transformers.config import reads_config_from


def resolve_hf_gguf_model_path(original: Callable, server_args: Any) -> None:
    """AROUND ``resolve_hf_gguf_model_path``: look at the whole file while there is one process.

    Raises:
        GGUFError: the file does not exist, is damaged, or is not a model that can be served.
    """
    if not uses_ascend_methods():
        return original(server_args)
    asked = resolving_view(server_args)
    for path in (asked.model_path, asked.speculative_draft_model_path):
        if path and path.endswith(".gguf") and _is_local(path) and not os.path.exists(path):
            raise GGUFError(
                "no such file",
                file=path,
                hint="Give the path of a file, or OWNER/REPO/FILE.gguf on the Hugging Face hub.",
            )
    original(server_args)
    _name_first_files(server_args)
    found = resolving_view(server_args)
    for path in (found.model_path, found.speculative_draft_model_path):
        if path and os.path.isfile(path):
            _check_model(path, found)


def _name_first_files(server_args: Any) -> None:
    """Replace paths of GGUF models by the absolute path of their (first) file.

    Only the first file of a split model has metadata, and transformers looks for a relative
    tokenizer file inside that file's own folder.
    """
    found = resolving_view(server_args)
    for field in ("model_path", "tokenizer_path", "speculative_draft_model_path"):
        path = getattr(found, field)
        if path and check_gguf_file(path):
            first = os.path.abspath(open_gguf(path).files[0])
            if first != path:
                declare_resolution(server_args, "ascend_gguf._name_first_files", **{field: first})


def _is_local(path: str) -> bool:
    # OWNER/REPO/FILE.gguf names a file on the hub; anything shorter, or anchored, is a path.
    return path.startswith(("/", ".", "~")) or path.count("/") < 2


def _check_model(path: str, asked: Any) -> None:
    if not check_gguf_file(path) and asked.quantization != "gguf":
        return
    file = open_gguf(path)
    if reads_config_from(path):
        architecture_of(file).name_map(file, load_config(path))
    if asked.load_format in ("auto", "gguf"):
        checked_options(asked.model_loader_extra_config)
