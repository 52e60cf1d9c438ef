"""Mamba-2's layer: its operators on the CPU, and a group of heads that several ranks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import is_cpu

from ascend_gguf.cpu.causal_conv import causal_conv1d_fn, causal_conv1d_update
from ascend_gguf.cpu.gated_rows import gated_rms_norm
from ascend_gguf.cpu.state_space import mamba_chunk_scan_combined, selective_state_update
from ascend_gguf.srt.layers.linear import wrap_loader
from ascend_gguf.srt.overrides import let_see, override_methods
from ascend_gguf.weights.block_tensor import BlockTensor

#: What the engine's layer calls, for CUDA alone or as Triton kernels.
_OPERATORS = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "causal_conv1d_fn_triton": causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d_update,
    "causal_conv1d_update_triton": causal_conv1d_update,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "selective_state_update": selective_state_update,
}


def share_group(config: Any) -> None:
    """The only group of heads becomes one for each rank, with the same ``B`` and ``C``.

    The engine shares it so by itself, but not with quantized weights.
    """
    ranks = get_parallel().tp_size
    config.mamba_shares_group = config.mamba_n_groups == 1 and ranks > 1
    if config.mamba_shares_group:
        config.mamba_n_groups = ranks


def repair_mixer(mixer: Any, config: Any) -> None:
    """``MambaMixer2``: operators of torch on the CPU; each rank has the group that they share.

    The engine has one switch for the biases of both projections.
    """
    for name in {"in_proj", "out_proj"} - {*config.biased}:
        getattr(mixer, name).register_parameter("bias", None)
    if is_cpu():
        let_see(mixer, "forward", **_OPERATORS)
        override_methods(mixer.norm, forward_native=_norm)
    if not config.mamba_shares_group:
        return
    state = mixer.ssm_state_size
    for layer in (mixer.conv1d, mixer.in_proj):
        ends = 2 * state, mixer.num_heads if layer is mixer.in_proj else 0
        wrap = partial(_load_group, mixer.tp_size, ends)
        wrap_loader(layer, wrap)
        # Also where it gets packed weights later, which take the layer's own.
        layer.weight_loader = wrap(layer.weight_loader)
        if layer.bias is not None:
            layer.bias.weight_loader = layer.weight_loader
    mixer.norm.n_groups, mixer.norm.group_size = 1, mixer.norm.full_hidden_size


def _norm(original: Callable, self: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Overrides ``Mixer2RMSNormGated.forward_native``, where a rank has whole groups."""
    groups, rest = divmod(x.shape[-1], self.group_size)
    if rest or not self.use_rms_norm:
        return original(self, x, gate)
    eps = self.variance_epsilon
    return gated_rms_norm(x, self.weight, gate, eps, groups=groups, gate_first=True)


def _load_group(ranks: int, ends: tuple[int, int], load: Callable) -> Callable:
    """The weight loader ``load``, for rows of which ranks share some.

    Args:
        ends: how many rows they share, half of them ``B`` and half ``C``, and how many follow.
    """

    def load_weight(parameter: torch.nn.Parameter, weight: torch.Tensor, *part: int) -> None:
        load(parameter, weight if part else _repeated(weight, ranks, *ends), *part)

    return load_weight


def _repeated(weight: torch.Tensor, ranks: int, shared: int, after: int) -> torch.Tensor:
    rows, is_matrix = weight, weight.dim() > 1
    if isinstance(weight, BlockTensor):
        rows = weight.read() if is_matrix else weight.dequantize()
    first, b, c, last = rows.split([len(rows) - shared - after, *[shared // 2] * 2, after])
    rows = torch.cat([first, *[b] * ranks, *[c] * ranks, last])
    if isinstance(weight, BlockTensor) and is_matrix:
        return BlockTensor(rows, int(weight.block_type.ggml_type), factor=weight.factor)
    return rows
