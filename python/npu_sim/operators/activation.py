"""Gated activations: npu_swiglu, npu_clipped_swiglu, npu_geglu, npu_fast_gelu.  float32 inside,
rounded once.
"""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, silu

from .products import A5, P310, product
from .registry import aclnn
from .rules import I64, Rules

CLIPPED = "CANN aclnnClippedSwiglu.md"


def _halves(rule, argument, x, dim, y):
    """The two halves of x along dim, in float32."""
    rule.floats(argument, x.t)
    rule.ndim(argument, x.t, 1, 8)
    rule.plain(argument, x)
    rule.range("dim", "it", dim, -x.t.dim(), x.t.dim() - 1)
    rule.multiple(argument, "the split dimension", x.t.shape[dim], 2)
    half = list(x.t.shape)
    half[dim] //= 2
    rule.shape("y", y.t, half)
    rule.same_dtype("y", y.t, argument, x.t)
    return x.t.float().chunk(2, dim)


@aclnn("aclnnSwiGlu", "tit")
def swiglu(x, dim, y):
    """y = silu(A) * B, A and B the halves of x."""
    rule = Rules("npu_swiglu", "torch_npu 2.13.0 documentation of npu_swiglu; CANN aclnnSwiGlu.md")
    a, b = _halves(rule, "self", x, dim, y)
    if product() == P310:
        rule.not_empty("self", x.t)
        rule.multiple("self", "the bytes of the last dimension", x.t.shape[-1] * x.t.itemsize, 64)
    y.t.copy_(silu(a) * b)


@aclnn("aclnnClippedSwiglu", "ttidddbt")
def clipped_swiglu(x, group_index, dim, alpha, limit, bias, interleaved, y):
    """y = A sigmoid(alpha A) (B + bias), A cut above at limit and B on both sides;

    A and B alternate or are halves.
    """
    groups = group_index
    rule = Rules("npu_clipped_swiglu", "torch_npu 2.13.0 documentation of npu_clipped_swiglu")
    rule.that(x.t.dim() > 1, "x", f"has more than 1 dimension (found shape {tuple(x.t.shape)})")
    rule.contiguous("x", x.t)
    rule.that(limit > 0, "limit", f"is positive (found {limit})", CLIPPED)
    a, b = _halves(rule, "x", x, dim, y)
    rows = None
    if groups:
        rule.dtype("group_index", groups.t, I64)
        rule.ndim("group_index", groups.t, 1)
        found = f"(found {groups.t.numel()})"
        rule.that(groups.t.numel() <= 8192, "group_index", f"has 8192 at most {found}", CLIPPED)
        rule.that(
            groups.t.numel() > 0 or product() != A5,
            "group_index",
            "is not empty on Ascend 950",
            CLIPPED,
        )
        rule.that(bool((groups.t >= 0).all()), "group_index", "values are not negative", CLIPPED)
        rows = int(groups.t.sum())
    if interleaved:
        f = x.t.float().movedim(dim, -1)
        a, b = f[..., 0::2].movedim(-1, dim), f[..., 1::2].movedim(-1, dim)
    a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    out = a * torch.sigmoid(alpha * a) * (b + bias)
    if rows is None:
        y.t.copy_(out)
    else:
        rule.that(
            dim in (-1, x.t.dim() - 1) and x.t.dim() == 2,
            "group_index",
            "is simulated for 2-D x split along its last dimension",
        )
        rule.range("group_index", "its sum", rows, 0, x.t.shape[0])
        y.t[:rows].copy_(out[:rows])


@aclnn("aclnnGeGluV3", "tiibtt")
def geglu(x, dim, approximate, activate_left, y, y_gelu):
    """y = B gelu(A): A is the left half with activate_left, else the right one."""
    rule = Rules("npu_geglu", "torch_npu 2.13.0 documentation of npu_geglu")
    left, right = _halves(rule, "self", x, dim, y)
    rule.one_of("approximate", approximate, 0, 1)
    a, b = (left, right) if activate_left else (right, left)
    activated = gelu(a, approximate="tanh" if approximate else "none")
    y_gelu.t.copy_(activated)
    y.t.copy_(activated * b)


@aclnn("aclnnFastGelu", "tt")
def fast_gelu(x, y):
    """x / (1 + exp(-1.702 x)): the formula of A2 and A3."""
    rule = Rules("npu_fast_gelu", "torch_npu 2.13.0 documentation of npu_fast_gelu")
    rule.floats("self", x.t)
    rule.ndim("self", x.t, 0, 8)
    rule.plain("self", x)
    f = x.t.float()
    y.t.copy_(f * torch.sigmoid(1.702 * f))
