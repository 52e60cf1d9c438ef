"""Root-mean-square norms: npu_rms_norm, npu_add_rms_norm, npu_gemma_rms_norm.

    y = x * rsqrt(mean(x^2) + epsilon) * gamma      over gamma's dimensions

float32 inside, y rounded once; rstd is float32.

add: x = x1 + x2 is rounded to its dtype, written out, and normed as rounded
gemma: (1 + gamma) in place of gamma
"""

from __future__ import annotations

import torch

from .products import P310, product
from .registry import aclnn
from .rules import Rules

RMS_DOC = "torch_npu 2.13.0 documentation of npu_rms_norm; CANN aclnnRmsNorm.md"
ADD_DOC = "CANN aclnnAddRmsNorm.md; torch_npu 2.13.0 documentation of npu_add_rms_norm_cast"
GEMMA_DOC = "torch_npu 2.13.0 documentation of npu_gemma_rms_norm"


def _common(rule, x, gamma, y, name="x"):
    rule.floats(name, x.t)
    rule.same_dtype("gamma", gamma.t, name, x.t)
    rule.ndim(name, x.t, 1, 8)
    tail = tuple(x.t.shape[x.t.dim() - gamma.t.dim() :])
    rule.that(
        1 <= gamma.t.dim() <= x.t.dim() and tuple(gamma.t.shape) == tail,
        "gamma",
        f"shape equals the last dimensions of {name}, {tuple(x.t.shape)} (found "
        f"{tuple(gamma.t.shape)})",
    )
    for argument, v in ((name, x), ("gamma", gamma)):
        rule.plain(argument, v)
        rule.that(
            product() != P310 or v.t.shape[-1] * v.t.itemsize >= 32,
            argument,
            f"the last dimension has 32 bytes or more on 310P (found shape {tuple(v.t.shape)})",
            "CANN aclnnRmsNorm.md",
        )
    rule.shape("y", y.t, x.t.shape)


def _norm(x, gamma, epsilon, y, rstd):
    """x in float32."""
    axes = tuple(range(x.dim() - gamma.dim(), x.dim()))
    inverse = torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + epsilon)
    y.t.copy_(x * inverse * gamma)
    if rstd is not None and rstd.t.numel() == inverse.numel():
        rstd.t.copy_(inverse.reshape(rstd.t.shape))


@aclnn("aclnnRmsNorm", "ttdtt")
def rms_norm(x, gamma, epsilon, y, rstd):
    _common(Rules("npu_rms_norm", RMS_DOC), x, gamma, y)
    _norm(x.t.float(), gamma.t.float(), epsilon, y, rstd)


@aclnn("aclnnAddRmsNorm", "tttdttt")
def add_rms_norm(x1, x2, gamma, epsilon, y, rstd, x):
    rule = Rules("npu_add_rms_norm", ADD_DOC)
    _common(rule, x1, gamma, y, "x1")
    rule.not_empty("x1", x1.t)
    rule.same_dtype("x2", x2.t, "x1", x1.t)
    rule.shape("x2", x2.t, x1.t.shape)
    rule.plain("x2", x2)
    total = (x1.t.float() + x2.t.float()).to(x1.t.dtype)
    x.t.copy_(total)
    _norm(total.float(), gamma.t.float(), epsilon, y, rstd)


@aclnn("aclnnGemmaRmsNorm", "ttdtt")
def gemma_rms_norm(x, gamma, epsilon, y, rstd):
    rule = Rules("npu_gemma_rms_norm", GEMMA_DOC)
    _common(rule, x, gamma, y)
    rule.not_empty("x", x.t)
    rule.contiguous("x", x.t)
    rule.contiguous("gamma", gamma.t)
    _norm(x.t.float(), gamma.t.float() + 1, epsilon, y, rstd)
