"""A mixture of experts on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[..., 2 * n]`` with the gate first: ``[..., n]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``gelu(gate) * up``, gelu by its tanh form, of ``[..., 2 * n]``: ``[..., n]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def swiglu_oai(alpha: float, limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """gpt-oss's ``gate * sigmoid(alpha * gate) * (up + 1)``, both clamped.

    Source: transformers, ``GptOssExperts``.

    Args:
        limit: of the gate from above, and of ``up`` from both sides.
    """

    def activation(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + 1)

    return activation


def swiglu_clamped(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Step 3.5's ``silu(gate) * up``, whose factors are clamped.

    Source: transformers, ``Step3p7Experts``.

    Args:
        limit: of the gate's from above, and of ``up`` from both sides.
    """

    def activation(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up, most = *gate_up.chunk(2, dim=-1), _at_most(limit, gate_up)
        return F.silu(gate).clamp(max=most) * up.clamp(-most, most)

    return activation


def swiglu_of_clamped(limit: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hunyuan 4's ``silu(gate) * up``, of a gate and ``up`` that are clamped before.

    Source: transformers, ``HYV4Experts``.

    Args:
        limit: of the gate from above, and of ``up`` from both sides.
    """

    def activation(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up, most = *gate_up.chunk(2, dim=-1), _at_most(limit, gate_up)
        return F.silu(gate.clamp(max=most)) * up.clamp(-most, most)

    return activation


def _at_most(limit: float, x: torch.Tensor) -> float:
    """A limit that the dtype of ``x`` has: torch refuses others."""
    return min(limit, torch.finfo(x.dtype).max)


def relu_squared(up: torch.Tensor) -> torch.Tensor:
    """``relu(up) ** 2``, of experts without a gate."""
    return F.relu(up).square()


#: Gated activations by the name the engine's models use.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
}
#: The same of experts without a gate.
PLAIN_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu2": relu_squared}


def apply_experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Callable[[torch.Tensor], torch.Tensor],
    *,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    weight_on_input: bool = False,
) -> torch.Tensor:
    """Weighted sum of each token's experts, those that this rank holds.

    Args:
        x: ``[tokens, hidden]``.
        w13: ``[experts, rows, hidden]``: gate and up projection, gate first.
        w2: ``[experts, hidden, ffn]``: down projection.
        topk_weights: ``[tokens, k]``, any float dtype.
        topk_ids: ``[tokens, k]``, any integer dtype; an id outside ``0 <= id < experts`` (the
            engine writes -1) is an expert of another rank and contributes nothing.
        activation: ``[n, rows] -> [n, ffn]``.
        w13_bias: ``[experts, rows]``; added in float32.
        w2_bias: ``[experts, hidden]``; added in float32.
        weight_on_input: scale the expert's input by its weight, not its output.

    Returns:
        ``[tokens, hidden]`` in the dtype of ``x``, accumulated in float32.
    """
    k = topk_ids.shape[1]
    experts = topk_ids.reshape(-1)
    weights = topk_weights.reshape(-1, 1).float()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)

    # One stable sort groups the (token, expert) pairs by expert; each expert then runs once over
    # all of its tokens.  Pairs of experts held elsewhere sort before 0 or after the last.
    order = experts.argsort(stable=True)
    bounds = torch.searchsorted(
        experts[order], torch.arange(w13.shape[0] + 1, device=experts.device, dtype=experts.dtype)
    ).tolist()
    for expert, (start, stop) in enumerate(pairwise(bounds)):
        if start == stop:
            continue
        pairs = order[start:stop]
        tokens = pairs // k
        rows = x[tokens]
        if weight_on_input:
            rows = (rows.float() * weights[pairs]).to(x.dtype)
        hidden = activation(_linear(rows, w13[expert], w13_bias, expert))
        result = _linear(hidden, w2[expert], w2_bias, expert).float()
        out.index_add_(0, tokens, result if weight_on_input else result * weights[pairs])
    return out.to(x.dtype)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, expert: int
) -> torch.Tensor:
    y = F.linear(x, weight)
    return y if bias is None else (y.float() + bias[expert].float()).to(x.dtype)
