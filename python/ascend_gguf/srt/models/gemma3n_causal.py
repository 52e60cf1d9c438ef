"""Gemma 3n: sparse activations on several ranks, keys of other layers, and packed weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.runtime_context import get_parallel

from ascend_gguf.srt.models import gemma4_causal
from ascend_gguf.srt.overrides import let_see, override_methods

#: The least magnitude of a stream, by which another is scaled: transformers' is of its square.
_LEAST = 1e-5**0.5


def repair_config(config: Any) -> None:
    """A width for each layer, and coefficients of AltUp as they are.

    They are clipped in training; the engine always writes into their weights to do so.
    """
    config.intermediate_size = [config.intermediate_size] * config.num_hidden_layers
    vars(config)["altup_coef_clip"] = None  # past transformers, which wants a number


def repair_attention(attention: Any, config: Any) -> None:
    """``Gemma3nAttention``: as Gemma 4's; its window includes the token itself.

    The engine takes for granted which of the last layers with keys has a window.  Queries go in
    head by head, and the backend for the CPU gives its result as it got them.
    """
    attention.attn.register_forward_hook(lambda module, inputs, found: found.flatten(1))
    gemma4_causal.repair_attention(attention, config)
    attention.attn.sliding_window_size = config.sliding_window - 1 if attention.is_sliding else -1
    if attention.is_kv_shared_layer:
        own = config.layer_types[: config.num_hidden_layers - config.num_kv_shared_layers]
        kind = config.layer_types[attention.layer_id]
        attention.attn.layer_id = max(i for i, other in enumerate(own) if other == kind)


def repair_activation(mlp: Any, config: Any) -> None:
    """``Gemma3nTextMLP``: what is left out depends on the activations of all ranks.

    What pads them is left out of account.
    """
    if mlp.activation_sparsity > 0:
        quantile = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(mlp.activation_sparsity))
        padded = config.intermediate_size[0]
        width = getattr(config, "original_intermediate_size", padded)
        mlp._gaussian_topk = partial(_leave_out, quantile.item(), width, padded - width)


def _leave_out(quantile: float, width: int, padding: int, gates: torch.Tensor) -> torch.Tensor:
    """Zero for gates below a quantile of the normal distribution of their mean and deviation.

    Args:
        width: numbers of a token on all ranks, beside ``padding`` zeros.
        gates: ``[tokens, width of a rank]``.
    """
    mean = _sum(gates.float()) / width
    squares = _sum((gates - mean).square()) - padding * mean.square()
    cutoff = mean + (squares / width).sqrt() * quantile
    return torch.relu(gates - cutoff.to(gates.dtype))


def _sum(x: torch.Tensor) -> torch.Tensor:
    """``[tokens, 1]``, of the parts of all ranks."""
    found = x.sum(dim=-1, keepdim=True)
    return tensor_model_parallel_all_reduce(found) if get_parallel().tp_size > 1 else found


def repair_layer(layer: Any, config: Any) -> None:
    """``Gemma3nDecoderLayer``: asks a weight, which may be packed, for the model's dtype."""
    gate = layer.per_layer_input_gate
    override_methods(gate, __getattr__=_weight_that_is_packed)


def _weight_that_is_packed(original: Callable, self: Any, name: str) -> Any:
    """Overrides ``__getattr__``: an empty weight, of the dtype that the packed one stands for."""
    layout = vars(self).get("gguf_layouts", {}).get(name)
    return original(self, name) if layout is None else torch.empty(0, dtype=layout.dtype)


def repair_streams(model: Any, config: Any) -> None:
    """``Gemma3nTextModel``: a stream of zeros, as of tokens of pictures, stays zero.

    The engine divides by its magnitude, or by the least number there is, which is negative.
    """
    let_see(model, "forward", torch=_TORCH)


class _Torch:
    """``torch``, with the least magnitude where the engine's model takes the least number."""

    @staticmethod
    def finfo(dtype: torch.dtype) -> SimpleNamespace:
        return SimpleNamespace(min=_LEAST)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_TORCH = _Torch()
