"""Parts of the gated delta rule in plain torch: on any device.

The rule is in :mod:`ascend_gguf.cpu.delta_net`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

#: Added to the square of the length of queries and keys.
EPS = 1e-6

#: Tokens of a prompt that are solved together, where each channel of a key decays by itself.
CHUNK_BY_CHANNEL = 16


def gates(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``g`` and ``beta`` ``[1, tokens, heads]`` float32, of ``a`` and ``b`` ``[tokens, heads]``.

    With ``a`` ``[tokens, heads, size]`` and ``dt_bias`` ``[heads, size]``, ``g`` has a size too.
    """
    rate = A_log.float().exp().view(-1, *[1] * (a.dim() - 2))
    g = -rate * F.softplus(a.float() + dt_bias.float())
    return g.unsqueeze(0), b.float().sigmoid().unsqueeze(0)


def of_length_one(x: torch.Tensor) -> torch.Tensor:
    """Vectors ``[..., size]`` of float32, scaled."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()


def between(since: torch.Tensor, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """``[..., tokens, tokens]``: ``x`` of each times ``k`` of those up to it, less the decay.

    The decay from one to another is computed as such: apart it would overflow.

    Args:
        since: ``[..., tokens, channels]``, the sum of ``g`` up to each; one channel stands for all.
        x, k: ``[..., tokens, size]``.
    """
    if since.shape[-1] == 1:
        return (x @ k.mT) * (since - since.mT).tril().exp().tril()
    decay = (since.unsqueeze(-2) - since.unsqueeze(-3)).clamp(max=0).exp()
    products = (decay * k.unsqueeze(-3)) @ x.unsqueeze(-1)
    return products.squeeze(-1).tril()
