"""npu_weight_quant_batchmatmul: y = x @ ((weight + antiquant_offset) * antiquant_scale) + bias.

Sources: torch_npu 2.13.0's documentation of npu_weight_quant_batchmatmul (DOC), and the parameter
checks of CANN's aclnn_weight_quant_batch_matmul_v2.cpp (CANN), which is what answers on a device.

    x                 (M, K)         float16, bfloat16; contiguous or a transposed view
    weight            (K, N)         int8, or int32 holding int4: (K, N/8), or the transposed view
                                     (K/8, N) of (N, K/8)
    antiquant_scale   (1,) (1, 1) | (N,) (1, N) | (ceil(K/g), N)   dtype of x
    antiquant_offset  as the scale; ADDED to the weight
    bias              (N,) (1, N)    float16 with float16 x, float32 with bfloat16 x
    antiquant_group_size  0, or a multiple of 32 in [32, K-1]

Not simulated, and refused by name: output quantisation (quant_scale, quant_offset) and 64-bit
scales (fixpipe).
"""

from __future__ import annotations

from math import ceil

from . import faults
from .antiquant import dequantise, matmul
from .registry import aclnn
from .rules import (
    A5,
    BF16,
    F16,
    F32,
    I8,
    I32,
    I64,
    P310,
    OperatorMissing,
    Rules,
    is_transposed,
    product,
)
from .view import int4_of, view

DOC = "torch_npu 2.13.0 documentation of npu_weight_quant_batchmatmul"
CANN = "CANN aclnn_weight_quant_batch_matmul_v2.cpp"
LARGEST = 65535


def weight_quant_matmul(
    name,
    x,
    weight,
    antiquant_scale,
    antiquant_offset,
    quant_scale,
    quant_offset,
    bias,
    group,
    y,
    inner_precise=0,
):
    x, weight, scale, offset, bias_, y = (
        view(a) for a in (x, weight, antiquant_scale, antiquant_offset, bias, y)
    )
    rule = Rules(name, DOC)
    packed_as = "int4" if weight.t.dtype == I32 else "int8"
    faults.strike(name, packed_as)
    wide = product() != P310

    for argument, value in (("quant_scale", quant_scale), ("quant_offset", quant_offset)):
        rule.that(wide or value is None, argument, "is not supported on 310P")
        if value is not None:
            raise OperatorMissing(name, f"output quantisation ({argument})")

    # dtypes
    rule.dtype("x", x.t, *((F16, BF16) if wide else (F16,)))
    rule.dtype("weight", weight.t, *((I8, I32) if wide else (I8,)))
    if scale.t.dtype == I64:
        rule.that(
            wide and x.t.dtype == F16 and weight.t.dtype == I8,
            "antiquant_scale",
            "64-bit scales need float16 x and int8 weight, not on 310P",
        )
        raise OperatorMissing(name, "64-bit antiquant_scale")
    rule.same_dtype("antiquant_scale", scale.t, "x", x.t)
    if offset:
        rule.same_dtype("antiquant_offset", offset.t, "antiquant_scale", scale.t)
    if bias_:
        wanted = (F16,) if x.t.dtype == F16 else (F32, BF16) if product() == A5 else (F32,)
        rule.that(
            bias_.t.dtype in wanted,
            "bias",
            f"dtype is {wanted[0]} where x is {x.t.dtype} (found {bias_.t.dtype})",
        )
    rule.same_dtype("y", y.t, "x", x.t)

    # formats
    for argument, v in (
        ("x", x),
        ("antiquant_scale", scale),
        ("antiquant_offset", offset),
        ("bias", bias_),
    ):
        rule.plain(argument, v)

    # shapes
    rule.ndim("x", x.t, 2)
    rule.ndim("weight", weight.t, 2)
    for argument, v in (
        ("x", x),
        ("weight", weight),
        ("antiquant_scale", scale),
        ("antiquant_offset", offset),
        ("bias", bias_),
    ):
        rule.not_empty(argument, v and v.t)
    rule.contiguous_or_transposed("x", x.t)
    rule.contiguous_or_transposed("weight", weight.t)
    transposed, int4 = is_transposed(weight.t), weight.t.dtype == I32
    if int4:
        rule.that(
            not (transposed and tuple(weight.t.shape) == (1, 8)),
            "weight",
            "int4 in shape (1, 8) with a transposed view is taken for another K",
        )
    w = int4_of(weight.t) if int4 else weight.t
    (m, k), (wk, n) = x.t.shape, w.shape
    rule.equal("weight", "its K", wk, k)
    if wide and product() != A5:
        rule.range("x", "K", k, 1, LARGEST)
        rule.range("weight", "N", n, 1, LARGEST)
        rule.that(
            not is_transposed(x.t) or m <= LARGEST,
            "x",
            f"M is in [1, {LARGEST}] where x is transposed (found {m})",
        )
    rule.shape("y", y.t, (m, n))
    rule.contiguous("y", y.t)

    # groups
    rule.that(
        wide or group == 0,
        "antiquant_group_size",
        "310P has no per-group weights: the group size is 0",
    )
    rule.that(
        group == 0 or (group % 32 == 0 and 32 <= group <= k - 1),
        "antiquant_group_size",
        f"is 0 or a multiple of 32 in [32, K-1], K = {k} (found {group})",
    )
    allowed = [(ceil(k / group), n)] if group else [(1,), (1, 1), (n,), (1, n)]
    rule.shape("antiquant_scale", scale.t, *allowed)
    if offset:
        rule.shape("antiquant_offset", offset.t, scale.t.shape)
    for argument, v in (("antiquant_scale", scale), ("antiquant_offset", offset)):
        if v and v.t.dim() == 2 and 1 not in v.t.shape:
            # With a transposed weight CANN reads the memory of scale and offset as (N, G) whatever
            # the strides say (TensorContiguousProcess): a contiguous (G, N) scale is accepted there
            # and gives wrong numbers.
            rule.that(
                is_transposed(v.t) if transposed else v.t.is_contiguous(),
                argument,
                f"is {'a transposed view' if transposed else 'contiguous'}, as weight is"
                f" (found strides {v.t.stride()})",
                CANN,
            )
    if bias_:
        rule.shape("bias", bias_.t, (n,), (1, n))
        rule.contiguous("bias", bias_.t)
    rule.one_of("inner_precise", inner_precise, 0, 1)

    if weight.nz:
        _nz_rules(rule, int4, transposed, x, scale, group, k, n)
        # torch_npu has a call of its own for it on Ascend 950 alone (aclnnWeightQuantBatchMatmulNz)
        rule.that(
            product() == A5,
            "weight",
            "FRACTAL_NZ is for graph mode (torchair), not for single calls: keep ND",
        )

    weights = dequantise(
        w,
        scale.t.reshape(1, -1) if scale.t.dim() == 1 else scale.t,
        None if offset is None else offset.t.reshape(1, -1) if offset.t.dim() == 1 else offset.t,
        group,
    )
    y.t.copy_(matmul(x.t, weights, bias_ and bias_.t))
    if faults.is_wrong(name, packed_as):
        y.t.mul_(2)


def _nz_rules(rule, int4, transposed, x, scale, group, k, n):
    """FRACTAL_NZ weights: tiles of 16 rows by 32 bytes (int8 16 x 32, int4 16 x 64) of the stored,
    not the viewed, matrix.
    """
    rows, columns = (n, k) if transposed else (k, n)
    inner = 64 if int4 else 32
    rule.that(
        rows % 16 == 0 and columns % inner == 0,
        "weight",
        f"FRACTAL_NZ stores tiles of 16 x {inner}: stored rows divide by 16 and columns by {inner} "
        f"(found {rows} x {columns})",
        "CANN aclnn_grouped_matmul.cpp, TransWeightToNzCheckAlign",
    )
    if not int4:
        rule.that(product() != A5, "weight", "FRACTAL_NZ is for int4 only on Ascend 950", CANN)
        rule.undocumented(group == 0, "weight", "FRACTAL_NZ int8 per group")
        return
    if not group:
        rule.that(
            scale.t.numel() > 1, "antiquant_scale", "FRACTAL_NZ int4 is never per tensor", CANN
        )
        rule.that(
            transposed != (product() == A5),
            "weight",
            "FRACTAL_NZ int4 per channel is transposed (on Ascend 950: never)",
            CANN,
        )
        return
    # The wheel's documentation asks for a transposed x here, CANN's checks for one that is not;
    # CANN is what answers.
    rule.that(
        not is_transposed(x.t) and not transposed,
        "weight",
        "FRACTAL_NZ int4 per group: neither x nor weight transposed",
        CANN,
    )
    rule.that(
        group in (64, 128),
        "antiquant_group_size",
        f"FRACTAL_NZ int4 per group takes 64 or 128 (found {group})",
    )
    rule.multiple("weight", "K of FRACTAL_NZ int4 per group", k, group)
    # N divides by 64 because the tiles do


@aclnn("aclnnWeightQuantBatchMatmulV2", "ttttttt" + "w" + "t")
def v2(x, weight, scale, offset, quant_scale, quant_offset, bias, group, y):
    weight_quant_matmul(
        "npu_weight_quant_batchmatmul",
        x,
        weight,
        scale,
        offset,
        quant_scale,
        quant_offset,
        bias,
        group,
        y,
    )


@aclnn("aclnnWeightQuantBatchMatmulV3", "ttttttt" + "ww" + "t")
def v3(x, weight, scale, offset, quant_scale, quant_offset, bias, group, inner_precise, y):
    weight_quant_matmul(
        "npu_weight_quant_batchmatmul",
        x,
        weight,
        scale,
        offset,
        quant_scale,
        quant_offset,
        bias,
        group,
        y,
        inner_precise,
    )


@aclnn("aclnnWeightQuantBatchMatmulNz", "ttttttt" + "w" + "t")
def nz(x, weight, scale, offset, quant_scale, quant_offset, bias, group, y):
    v = view(weight)
    Rules("npu_weight_quant_batchmatmul", DOC).that(
        v.nz, "weight", f"aclnnWeightQuantBatchMatmulNz takes FRACTAL_NZ (found format {v.format})"
    )
    weight_quant_matmul(
        "npu_weight_quant_batchmatmul",
        x,
        weight,
        scale,
        offset,
        quant_scale,
        quant_offset,
        bias,
        group,
        y,
    )
