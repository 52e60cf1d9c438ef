"""npu_dynamic_quant: symmetric int8 quantisation, one scale a row.

scale = max|x * smooth| / 127    float32, shape of x without its last dimension
y     = round(x * smooth / scale)   int8, ties to even
"""

from __future__ import annotations

from .products import OLD, P310, product
from .registry import aclnn
from .rules import BF16, F16, I8, OperatorMissing, Rules
from .view import viewed

DOC = "torch_npu 2.13.0 documentation of npu_dynamic_quant; CANN aclnnDynamicQuant.md"
ACL_INT8 = 2


@viewed
def dynamic_quant(x, smooth, group_index, y, scale):
    rule = Rules("npu_dynamic_quant", DOC)
    rule.dtype("x", x.t, *((F16,) if product() in (P310, OLD) else (F16, BF16)))
    rule.that(x.t.dim() > 1, "x", f"has more than 1 dimension (found shape {tuple(x.t.shape)})")
    rule.plain("x", x)
    if product() in (P310, OLD):
        rule.multiple("x", "the last dimension", x.t.shape[-1], 32)
    if group_index is not None:
        raise OperatorMissing("npu_dynamic_quant", "group_index")
    if y.t.dtype != I8:
        raise OperatorMissing("npu_dynamic_quant", f"output {y.t.dtype}")
    f = x.t.float()
    if smooth and product() not in (P310, OLD):  # which leave it alone
        rule.same_dtype("smooth_scales", smooth.t, "x", x.t)
        rule.shape("smooth_scales", smooth.t, (x.t.shape[-1],))
        f = f * smooth.t.float()
    s = f.abs().amax(-1, keepdim=True) / 127
    y.t.copy_((f / s).nan_to_num(0.0).round().clamp(-128, 127))  # a row of zeros gives zeros
    scale.t.copy_(s.squeeze(-1))


@aclnn("aclnnDynamicQuant", "tttt")
def v1(x, smooth, y, scale):
    dynamic_quant(x, smooth, None, y, scale)


@aclnn("aclnnDynamicQuantV2", "ttt" + "i" + "ttt")
def v2(x, smooth, group_index, dst_type, y, scale, offset):
    dynamic_quant(x, smooth, group_index, y, scale)
