"""The gated delta net of Qwen3.5: its layers, loading, the order of its heads, its norm on the CPU.

Value heads that share a key head are side by side in the model, and apart in files of Qwen3.5
(``value_heads_are_tiled``): first one of each key head, then the next ones.  Rows are moved when
they are loaded (:func:`ascend_gguf.architectures.transforms.grouped_heads`).  The columns of the
output's matrix may not move, as a head may be half a block: its input is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.configs.qwen3_next import HybridLayerType
from sglang.srt.utils import is_cpu

from ascend_gguf.cpu.gated_rows import gated_rms_norm
from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.layers.linear import wrap_loader
from ascend_gguf.weights.block_tensor import BlockTensor, as_blocks


def set_layers(config: Any) -> None:
    """``layers_block_type`` of ``full_attention_layers``: the engine knows every n-th layer alone.

    A class of its own, as the engine has a property for it.
    """
    full = getattr(config, "full_attention_layers", None)
    if full is None:
        return
    cls = type(config)

    def layers_block_type(self: Any) -> list[str]:
        if self.full_attention_interval == 1:  # the layer that drafts
            return cls.layers_block_type.fget(self)
        names = HybridLayerType.linear_attention.value, HybridLayerType.full_attention.value
        return [names[i in full] for i in range(self.num_hidden_layers)]

    config.__class__ = type(
        cls.__name__, (cls,), {"layers_block_type": property(layers_block_type)}
    )


def repair_delta_net(net: Any, config: Any) -> None:
    """``Qwen3_5GatedDeltaNet``: blocks for its merged projections, and the file's order of heads.

    The engine's loaders for projections of several parts know nothing of blocks.
    """
    for layer in (net.in_proj_qkvz, net.in_proj_ba):
        wrap_loader(layer, partial(net._make_packed_weight_loader, layer))
    is_tiled = getattr(config, "value_heads_are_tiled", False)
    if is_tiled and net.num_v_heads != net.num_k_heads:
        net.out_proj.register_forward_pre_hook(
            lambda module, inputs: (_in_file_order(inputs[0], net), *inputs[1:])
        )
        if net.attn_tp_size > 1:
            wrap_loader(net.out_proj, partial(_load_by_rank, net))
    if is_cpu():
        norm = net.norm
        norm.forward = lambda x, z: gated_rms_norm(x, norm.weight, z, norm.eps)


def refuse_other_class(net: Any, config: Any) -> None:
    """``Qwen3GatedDeltaNet``, of Qwen3-Next: raises GGUFError, as it would load and be wrong."""
    raise GGUFError(
        "Qwen3-Next is served by SGLang's class of Qwen3.5, and its configuration names another",
        found=", ".join(config.architectures or ["none"]),
        hint="Take the config.json beside the file away: the file says all that is needed.",
    )


def _in_file_order(x: torch.Tensor, net: Any) -> torch.Tensor:
    """The heads of this rank as its part of the file's matrix has them.

    Args:
        x: ``[tokens, value_heads * value_size]``.
    """
    heads = x.view(len(x), -1, net.num_v_heads // net.num_k_heads, net.head_v_dim)
    return heads.transpose(1, 2).reshape(x.shape)


def _load_by_rank(net: Any, load: Callable) -> Callable:
    """The weight loader ``load``, for a matrix whose columns of one rank are apart."""

    def load_weight(parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
        load(parameter, _by_rank(weight, net.num_v_heads // net.num_k_heads, net.attn_tp_size))

    return load_weight


def _by_rank(weight: torch.Tensor, share: int, ranks: int) -> torch.Tensor:
    """A matrix with each rank's columns side by side, blocks as they are where none is split."""
    width, factor = weight.shape[1] // (share * ranks), 1.0
    rows = weight
    if isinstance(weight, BlockTensor):
        if width % weight.block_type.block_size == 0:
            rows, factor = weight.read(), weight.factor
        else:
            rows = weight.dequantize()
    moved = rows.reshape(len(rows), share, ranks, -1).transpose(1, 2).reshape(rows.shape)
    if rows.dtype == torch.uint8:
        return BlockTensor(moved, int(weight.block_type.ggml_type), factor=factor)
    return as_blocks(moved)
