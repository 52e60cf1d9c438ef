"""What an embedding is made of: the pooling that a file asks for, and where its tokens look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.layers.pooler import Pooler, PoolingType
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from torch import nn

from ascend_gguf.architectures import is_reranker
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile
from ascend_gguf.servable import attends_both_ways
from ascend_gguf.srt.overrides import override_methods

#: ``ARCHITECTURE.pooling_type`` (gguf ``PoolingType``): its name, and the engine's.
_POOLINGS: dict[int, tuple[str, PoolingType | None]] = {
    0: ("none: an embedding for each token", None),
    1: ("mean", PoolingType.MEAN),
    2: ("cls, the first token", PoolingType.CLS),
    3: ("last", PoolingType.LAST),
    4: ("rank: a score, for which the file has no head", None),
}
#: Of an architecture whose files do not say, what its models are trained with.
_UNSAID = {"llama-embed": PoolingType.MEAN}

#: Tokens of prompts computed at once, without chunked prefill.
_MOST_TOKENS = 4096


def pooling_of(file: GGUFFile) -> PoolingType | None:
    """How a file's embeddings are pooled; None if it does not say, or is a reranker.

    Raises:
        GGUFError: the engine does not pool so.
    """
    value = file.arch_field("pooling_type", None)
    if is_reranker(file):
        return None
    if value is None:
        return _UNSAID.get(file.architecture or "")
    name, pooling = _POOLINGS.get(value, ("unknown", None)) if type(value) is int else ("", None)
    if pooling is None:
        raise GGUFError(
            "embeddings are not pooled so here",
            file=file.files[0],
            key=f"{file.architecture}.pooling_type",
            found=f"{value!r:.80} {name and f'({name})'}".strip(),
            expected="1 (mean), 2 (cls) or 3 (last)",
            hint="Leave out --is-embedding to serve the model's text.",
        )
    return pooling


def prepare_pooling(server_args: Any, file: GGUFFile) -> None:
    """Keep a prompt whole where its first tokens count, or see the last ones.

    The engine pools what it computes in a step: without what it finds in its cache, and without the
    chunks before.
    """
    if pooling_of(file) in (PoolingType.MEAN, PoolingType.CLS) or attends_both_ways(file):
        # Without chunks the engine sets memory aside for as many tokens as a batch may have.  One
        # prompt may be longer.
        tokens = min(resolving_view(server_args).max_prefill_tokens, _MOST_TOKENS)
        declare_resolution(
            server_args,
            "ascend_gguf.pooling",
            disable_radix_cache=True,
            chunked_prefill_size=-1,
            max_prefill_tokens=tokens,
        )


def apply_pooling(model: nn.Module, file: GGUFFile) -> None:
    """Let a model attend and pool as its file says."""
    if attends_both_ways(file):
        for module in model.modules():
            if isinstance(module, RadixAttention):
                module.attn_type = AttentionType.ENCODER_ONLY
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, Pooler) and (pooling := pooling_of(file)) is not None:
        pooler.pooling_type = pooling
        pooler.normalize = True
        override_methods(pooler, forward=_in_float32)


def _in_float32(
    original: Callable, self: Pooler, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """The engine takes a mean from a sum over all requests, of which little is left in 16 bits."""
    return original(self, hidden_states.float(), *args, **kwargs)
