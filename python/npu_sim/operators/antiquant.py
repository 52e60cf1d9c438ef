"""The arithmetic of weights dequantised inside a matrix product, shared by the dense and the
grouped one.
"""

from __future__ import annotations

import torch

from . import faults


def dequantise(
    w: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, group: int
) -> torch.Tensor:
    """(w + offset) * scale, in the scale's dtype, returned as float32.

    w: (.., K, N) int8 or int4 values as int8.  scale, offset: (.., G, N), one row for `group` rows
    of w (group 0: one row for all).

    Rounding follows the A2 kernels (AntiQuantCalType in CANN's weight_quant_batch_matmul_v2
    sources): float16 adds and multiplies in float16, so both steps round; bfloat16 adds and
    multiplies in float32 and rounds once, to bfloat16.
    """
    work = torch.float16 if scale.dtype == torch.float16 else torch.float32
    out = w.to(work)  # laid out as w is, which is how scale and offset are
    rows = out.shape[-2]
    whole = rows // group if group else 0
    groups = out[..., : whole * group, :].unflatten(-2, (whole, group)), slice(whole)
    rest = out[..., whole * group :, :].unsqueeze(-3), slice(whole, None)
    for part, which in (groups, rest):
        if not part.numel():
            continue
        if offset is not None and not faults.has(faults.ANTIQUANT_OFFSET):
            part += offset[..., which, :].to(work).unsqueeze(-2)
        part *= scale[..., which, :].to(work).unsqueeze(-2)
    return out.to(scale.dtype).float()


def matmul(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ w + bias in float32: the cube unit accumulates in float32; the caller rounds once to the
    output's dtype.
    """
    out = x.float() @ w.float()
    return out if bias is None else out + bias.float()
