"""Finding and checking a GGUF model before the engine starts anything."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.utils import is_cpu, is_npu
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.architectures import architecture_of, check_kind, is_reranker
from ascend_gguf.architectures.tensor_names import is_of_encoder, predicts_further_tokens
from ascend_gguf.codegen.threads import wait_briefly
from ascend_gguf.config import load_config
from ascend_gguf.errors import GGUFError, shown
from ascend_gguf.generation_config import (
    ignored_settings,
    load_generation_config,
    suppressed_tokens,
)
from ascend_gguf.hub import fetch_model, is_gguf_repository, parse_reference
from ascend_gguf.npu.products import this_product
from ascend_gguf.overrides import apply_overrides
from ascend_gguf.reader import GGUFFile, open_gguf
from ascend_gguf.reader.joining import how_to_join, whole_name
from ascend_gguf.reader.locate import is_gguf_name
from ascend_gguf.servable import refuse_both_ways, refuse_float16
from ascend_gguf.srt.arg_groups.speculative_hook import drafts_for_itself
from ascend_gguf.srt.arg_groups.unsupported_options import refuse_options
from ascend_gguf.srt.layers.pooler import prepare_pooling
from ascend_gguf.srt.model_loader.loader import checked_options
from ascend_gguf.srt.utils.hf_transformers.common import reads_from
from ascend_gguf.srt.utils.hf_transformers.config import reads_config_from
from ascend_gguf.srt.utils.hf_transformers.tokenizer import reads_tokenizer_from
from ascend_gguf.tokenizer import load_tokenizer
from ascend_gguf.tokenizer.chat_templates import RERANK_KEY
from ascend_gguf.tokenizer.reranking import rerank_template

logger = logging.getLogger(__name__)


def resolve_hf_gguf_model_path(original: Callable, server_args: Any) -> None:
    """AROUND ``resolve_hf_gguf_model_path``: check the whole file while there is one process.

    Raises:
        GGUFError: the model cannot be found, is damaged, or is not one that can be served.
    """
    asked = resolving_view(server_args)
    required = "gguf" in (asked.quantization, asked.load_format)
    model = find_model(asked.model_path, asked.revision, required, asked.download_dir)
    paths = {"model_path": model}
    if model != asked.model_path and asked.served_model_name is None:
        paths["served_model_name"] = asked.model_path
    if asked.tokenizer_path == asked.model_path:  # the engine may have filled it in already
        paths["tokenizer_path"] = model
    elif asked.tokenizer_path:
        paths["tokenizer_path"] = _first_file(asked.tokenizer_path)
    if asked.speculative_draft_model_path:
        paths["speculative_draft_model_path"] = find_model(
            asked.speculative_draft_model_path,
            asked.speculative_draft_model_revision,
            asked.speculative_draft_model_quantization == "gguf",
            asked.download_dir,
        )
    for field, path in paths.items():
        if path != getattr(asked, field):
            declare_resolution(server_args, "ascend_gguf.find", **{field: path})
    if asked.speculative_draft_model_path or drafts_for_itself(asked):
        _settle_draft_format(server_args)
    original(server_args)
    found = resolving_view(server_args)
    if check_gguf_file(found.model_path):
        if architecture_of(open_gguf(found.model_path)).embeds:
            declare_resolution(server_args, "ascend_gguf.embeds", is_embedding=True)
            found = resolving_view(server_args)
        refuse_options(found)
        if is_npu() and not this_product().has_bfloat16:
            settle_float16(server_args)
            found = resolving_view(server_args)
    for path in (found.model_path, found.speculative_draft_model_path):
        if path and os.path.isfile(path):
            _check_model(path, found)
    if found.is_embedding and check_gguf_file(found.model_path):
        prepare_pooling(server_args, open_gguf(found.model_path))
    if is_cpu() and check_gguf_file(found.model_path):
        wait_briefly()  # before the processes that compute are started
        # A step on the CPU is over when its call returns: to begin the next before its result is
        # looked at would make each token wait for the next, and finished requests take one more.
        declare_resolution(server_args, "ascend_gguf.cpu", disable_overlap_schedule=True)
    tokenizer = found.tokenizer_path or found.model_path
    if reads_tokenizer_from(tokenizer) and not found.skip_tokenizer_init:
        load_tokenizer(tokenizer, check_template=not found.chat_template)
    if check_gguf_file(found.model_path) and not found.chat_template:
        _check_reranker(open_gguf(found.model_path))


def settle_float16(server_args: Any) -> None:
    """On a chip without bfloat16, which most files ask for, float16 is the default.

    Raises:
        GGUFError: bfloat16 is asked for.
    """
    asked = resolving_view(server_args)
    if asked.dtype == "bfloat16":
        raise GGUFError(
            "this chip does not compute in bfloat16",
            file=asked.model_path,
            found="--dtype bfloat16",
            hint="Leave out --dtype, or use float16.",
        )
    if asked.dtype == "auto":
        declare_resolution(server_args, "ascend_gguf.float16", dtype="float16")


def find_model(
    path: str, revision: str | None, required: bool, download_dir: str | None = None
) -> str:
    """The (first) file of the GGUF model at ``path``, fetched from the hub where it lies there.

    ``path`` itself if it is a model of another format; ``required`` says that it must not be.
    """
    if os.path.isdir(path) and required:
        return os.path.abspath(open_gguf(path).files[0])
    if os.path.exists(path):
        _refuse_pieces(path)
        return _first_file(path)
    reference = parse_reference(path)
    if reference is not None:
        file = fetch_model(reference, revision, download_dir, required=required)
        return path if file is None else str(file)
    if is_gguf_name(path):
        raise GGUFError(
            "no such file",
            file=path,
            hint=how_to_join(Path(path))
            or "Give the path of a file, or OWNER/REPO/FILE.gguf on the Hugging Face hub.",
        )
    return path


def _refuse_pieces(path: str) -> None:
    """Raises GGUFError for pieces of a file of which the first alone begins like GGUF."""
    files = list(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    if not all(whole_name(file.name) for file in files if file.is_file() and file.suffix != ".md"):
        return
    hint = next((hint for file in files if (hint := how_to_join(file))), None)
    if hint is not None and not check_gguf_file(path):
        raise GGUFError("a model that was cut for uploading, in pieces", file=path, hint=hint)


def _first_file(path: str) -> str:
    """``path``, or the absolute path of its (first) file if it is a GGUF model.

    Only the first file of a split model has metadata, and transformers looks for a relative
    tokenizer file inside that file's own folder.
    """
    names = (file.name for depth in ("*", "*/*") for file in Path(path).glob(depth))
    if is_gguf_repository(names) or check_gguf_file(path):
        return os.path.abspath(open_gguf(path).files[0])
    return path


def _settle_draft_format(server_args: Any) -> None:
    """Let a draft model be of another format than the model it drafts for.

    The engine takes over the model's format, but not yet what it finds the model to be.
    """
    found = resolving_view(server_args)
    own = found.model_path  # whose layer drafts for it
    draft_path = found.speculative_draft_model_path or own
    model, draft = map(check_gguf_file, (own, draft_path))
    if not model and not draft:
        return
    finalized = {
        "speculative_draft_model_quantization": "gguf" if draft else "unquant",
        "speculative_draft_load_format": "gguf" if draft else "auto",
    }
    unsaid = {name: value for name, value in finalized.items() if getattr(found, name) is None}
    declare_resolution(server_args, "ascend_gguf.draft", **unsaid)


def _apply_overrides(config: Any, overrides: str) -> None:
    """What the user sets himself, as ``get_config`` does again in each process."""
    try:
        overrides = json.loads(overrides or "{}")
    except ValueError as error:
        raise GGUFError(f"--json-model-override-args is not JSON: {error}") from error
    if unknown := apply_overrides(config, overrides):
        logger.warning(
            "--json-model-override-args: %s: no such attribute in the configuration of a %s model; "
            "most likely nothing reads it.",
            ", ".join(unknown),
            config.model_type,
        )


def _check_model(path: str, asked: Any) -> None:
    if not check_gguf_file(path) and asked.quantization != "gguf":
        return
    file = open_gguf(path)
    check_kind(file)
    if reads_config_from(path):
        config = load_config(path)
        if path == asked.model_path:
            _apply_overrides(config, asked.json_model_override_args)
        architecture_of(file).name_map(file, config)
        _tell_what_is_left_out(file, config, drafts_for_itself(asked))
        if not asked.is_embedding:
            refuse_both_ways(file)
    suppressed_tokens(file)
    if reads_from(path, unless="generation_config.json"):
        load_generation_config(path)
        if ignored := ignored_settings(file):
            logger.warning("%s: SGLang does not sample by %s.", path, ", ".join(ignored))
    options = {}
    if asked.load_format in ("auto", "gguf"):
        options = checked_options(asked.model_loader_extra_config)
    if asked.dtype in ("float16", "half") and options.get("float16") != "allow":
        refuse_float16(file)


def _check_reranker(file: GGUFFile) -> None:
    if is_reranker(file) and rerank_template(file) is None:
        logger.warning(
            "%s: the reranker has no prompt (%s): a query and a document follow each other. Scores "
            "are what the model was trained for only if it was trained so; else convert it again "
            "with a current llama.cpp, or give the prompt with --chat-template FILE.jinja.",
            file.files[0],
            RERANK_KEY,
        )


def _tell_what_is_left_out(file: GGUFFile, config: Any, drafts: bool) -> None:
    further = [t for t in file.tensors.values() if predicts_further_tokens(t, config)]
    if further and not drafts:
        logger.warning(
            "%s: multi-token prediction is not used. Its layers are left out "
            "(tensors: %d, %.1f MB).",
            file.path,
            len(further),
            sum(tensor.nbytes for tensor in further) / 1e6,
        )
    tensors = [tensor for tensor in file.tensors.values() if is_of_encoder(tensor.name)]
    if tensors:
        kinds = sorted({shown(tensor.name.partition(".")[0]) for tensor in tensors})
        logger.warning(
            "%s: serving the text model alone. The encoder of pictures or sound beside it is left "
            "out: %d tensors (%s), %.1f MB.",
            file.path,
            len(tensors),
            ", ".join(f"{kind}.*" for kind in kinds),
            sum(tensor.nbytes for tensor in tensors) / 1e6,
        )
