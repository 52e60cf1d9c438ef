"""Packed codes on a device: taken apart to be decoded, and the input of nibble planes."""

from __future__ import annotations

import torch


def unpacked(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int32 ``[..., n]``, eight codes each, to ``dtype [..., 8 * n]``; int8 to as many."""
    if packed.dtype != torch.int32:
        return packed.to(dtype)
    # In floats, all exact: an NPU leaves shifts to the host.
    both = packed.view(torch.int8).to(dtype)
    high = torch.floor_divide(both, 16)
    low = torch.sub(both, torch.floor_divide(both + 8, 16), alpha=16)
    return torch.stack((low, high), dim=-1).flatten(-2)


def doubled(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The input for planes: ``[n, cols]`` to ``[n, 2 * cols]``: values, then a 16th of them.

    ``factors``: :func:`plane_factors` for the dtype and device of ``x``.
    """
    return (x.unflatten(-1, (-1, 1, factors.shape[-1])) * factors).flatten(-3)


def plane_factors(dtype: torch.dtype, device: torch.device, group: int) -> torch.Tensor:
    """What the inputs of high and of low codes are multiplied with: ``[2, group]``."""
    factors = torch.tensor([[1.0], [0.0625]], dtype=dtype, device="cpu")
    return factors.repeat(1, group).to(device)
