"""What a model must be to be served, told before anything is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ascend_gguf.architectures import architecture_of, check_kind
from ascend_gguf.architectures.dimensions import first
from ascend_gguf.architectures.metadata import number
from ascend_gguf.config import describe, read_config
from ascend_gguf.errors import GGUFError
from ascend_gguf.generation_config import recommended_sampling, suppressed_tokens
from ascend_gguf.reader import GGUFFile, open_gguf
from ascend_gguf.tokenizer import stop_token_ids

#: What CANN's operators for latent attention take: sizes of a vector, and of the key beside it.
_LATENT, _KEY = 512, 64


def describe_model(path: str | os.PathLike) -> Any:
    """As :func:`check_model`, of most files without transformers, which takes a second.

    Returns:
        The configuration as :func:`.config.describe` gives it, or transformers'.
    """
    try:
        return check_model(path, describe)
    except Exception:  # perhaps by what only transformers has a default for
        return check_model(path)


def check_model(
    path: str | os.PathLike, read: Callable[[str | os.PathLike], Any] = read_config
) -> Any:
    """Check all that does not depend on the device, but for the tokenizer.

    Args:
        read: of :mod:`.config`, what reads the configuration.

    Returns:
        The model's configuration, without the name of its class.

    Raises:
        GGUFError: the model cannot be served.
    """
    file = open_gguf(path)
    check_kind(file)
    config = read(path)
    architecture_of(file).name_map(file, config)
    refuse_both_ways(file)
    suppressed_tokens(file)
    recommended_sampling(file)
    stop_token_ids(path)
    return config


def reach(config: Any) -> int | None:
    """Tokens of context that are served, of a model that attends to a part; None: to everything.

    Llama 4 attends to chunks, DeepSeek 3.2, GLM-5 and Hunyuan 4 to the tokens that an indexer
    chooses, MiniMax M3 to blocks of them.  The backends attend to everything, so it is right up to
    as many tokens.
    """
    return first(config, "attention_chunk_size", "sparse_attention_size")


def joined_latent(config: Any, has_operators: bool = True) -> int | None:
    """Numbers of a latent vector and its key together, if an NPU attends to both as one.

    CANN's operators for latent attention have sizes of their own, and no temperature; SGLang's
    calls of them have no sinks.  Others are attended to by those for one head of keys: vector and
    key are a key, and a value whose first numbers count.

    Args:
        has_operators: whether the chip has those for latent attention.
    """
    latent = getattr(config, "kv_lora_rank", None)
    if not latent:
        return None
    key = config.qk_rope_head_dim
    has_more = first(config, "llama_4_scaling", "learnable_sink")
    is_taken = has_operators and (latent, key) == (_LATENT, _KEY) and not has_more
    return None if is_taken else latent + key


def refuse_on_npu(path: str | os.PathLike, config: Any) -> None:
    """Raises GGUFError for a model of a configuration that is right on the CPU alone."""
    if config.model_type == "llama4_text" and config.num_experts_per_tok != 1:
        raise GGUFError(
            "SGLang cannot choose experts so on an NPU",
            file=path,
            key="expert_used_count",
            found=config.num_experts_per_tok,
            expected="1",
            hint="On the CPU this model is served.",
        )


def refuse_device(file: GGUFFile, config: Any, is_npu: bool, dtype: str) -> None:
    """Raises GGUFError for a model that is not served on such a device in a dtype."""
    if is_npu:
        refuse_on_npu(file.path, config)
    if dtype == "float16":
        refuse_float16(file)


def attends_both_ways(file: GGUFFile) -> bool:
    """True if a token sees those that follow it."""
    return architecture_of(file).embeds or number(file, "attention.causal", bool) is False


def refuse_both_ways(file: GGUFFile) -> None:
    """Raises GGUFError for a model that gives embeddings and no text."""
    if attends_both_ways(file) and not architecture_of(file).embeds:
        raise file.error(
            "the model attends in both directions, which gives embeddings and no text",
            "attention.causal",
            found=False,
            hint="Serve it with --is-embedding.",
        )


def refuse_float16(file: GGUFFile) -> None:
    """Raises GGUFError for a model that overflows float16."""
    reason = architecture_of(file).beyond_float16
    if reason is not None:
        raise GGUFError(
            f"this model does not work in float16: {reason}",
            file=file.path,
            hint="Serve it with --dtype bfloat16 (an Ascend 310P has float16 only: it cannot "
            "serve this model).",
        )
