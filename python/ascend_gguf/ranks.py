"""What several ranks cannot share evenly."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ascend_gguf.architectures.dimensions import heads_of
from ascend_gguf.reader import GGUFTensor, open_gguf

# The matrices whose input is cut, by the end of their names in the file.
_WIDTHS = {
    "ffn_down": "columns of a feed-forward layer",
    "ffn_down_exps": "columns of an expert",
    "ffn_down_shexp": "columns of the shared experts",
}

#: Models, by ``model_type``, of which a key-value head is on one rank alone.
_NOT_COPIED = frozenset({"muse_glimmer_text", "nanbeige"})


class Shares(NamedTuple):
    """Into how many parts a model is cut.

    Attributes:
        tp: ranks of tensor parallelism.
        ep, moe_dp: parts that experts are dealt to.
        attention: ranks that share the heads.
    """

    tp: int
    ep: int
    moe_dp: int
    attention: int


def uneven(
    path: str | os.PathLike,
    config: Any,
    shares: Shares,
    heads: tuple[int, int | None],
    pads: bool = False,
) -> Iterator[str]:
    """What ranks cannot share evenly, in words.

    Args:
        config: the model's configuration.
        heads: query heads and key-value heads; None for latent ones, which ranks do not share.
        pads: whether widths are padded, and key-value heads never copied, as on the CPU.
    """
    yield from uneven_experts(path, config, shares)
    if shares.tp % (shares.ep * shares.moe_dp):
        return
    pairs = _heads_by_layer(config) or {heads}
    copies = not pads and config.model_type not in _NOT_COPIED
    yield from dict.fromkeys(_uneven_heads(sorted(pairs), shares.attention, copies))
    if pads:
        return
    widths = _widths(path)
    for name in sorted(widths):
        ranks = shares.tp
        if name == "ffn_down_exps":
            ranks //= shares.ep * shares.moe_dp
        for width in sorted({tensor.shape[-1] for tensor in widths[name]}):
            if width % ranks:
                yield f"{width} {_WIDTHS[name]}"


def uneven_experts(path: str | os.PathLike, config: Any, shares: Shares) -> Iterator[str]:
    """As :func:`uneven`, of what is never padded."""
    if shares.tp % (shares.ep * shares.moe_dp):
        yield f"experts that are dealt to {shares.ep} parts"
        return
    stacks = _widths(path).get("ffn_down_exps", ())
    experts = max((tensor.shape[0] for tensor in stacks), default=0)
    if experts % shares.ep:
        yield f"{experts} experts"
    state_heads = getattr(config, "linear_num_key_heads", 0)
    if state_heads % shares.tp:
        yield f"{state_heads} key heads of linear attention"
    mamba_heads = getattr(config, "mamba_n_heads", getattr(config, "mamba_num_heads", 0))
    groups = getattr(config, "n_groups", getattr(config, "mamba_n_groups", 1))
    if mamba_heads % shares.tp:
        yield f"{mamba_heads} heads of Mamba-2"
    elif groups > 1 and groups % shares.tp:  # each rank has one that is alone
        yield f"{groups} groups of heads of Mamba-2"


def _uneven_heads(
    pairs: Iterable[tuple[int, int | None]], ranks: int, copies: bool
) -> Iterator[str]:
    for query, kv in pairs:
        if not ranks or query % ranks:
            yield f"{query} attention heads"
        elif kv and kv % ranks and (not copies or ranks % kv):
            yield f"{kv} key-value heads"


def _heads_by_layer(config: Any) -> set[tuple[int, int | None]]:
    """Query heads and key-value heads of layers, if these differ."""
    if not getattr(config, "sizes_by_layer", None):
        return set()
    return {heads_of(config, layer) for layer in range(config.num_hidden_layers)}


def _widths(path: str | os.PathLike) -> dict[str, list[GGUFTensor]]:
    """The matrices whose input is cut, by the end of their names."""
    found: dict[str, list[GGUFTensor]] = {}
    for name, tensor in open_gguf(path).tensors.items():
        match = re.fullmatch(r"blk\.\d+\.(\w+)\.weight", name)
        if match and match[1] in _WIDTHS:
            found.setdefault(match[1], []).append(tensor)
    return found
