"""npu_weight_quant_batchmatmul: y = x @ ((weight + antiquant_offset) * antiquant_scale) + bias.

Sources: torch_npu 2.13.0's documentation of npu_weight_quant_batchmatmul (DOC), CANN's
documentation (aclnnWeightQuantBatchMatmulV2.md: V2), and the parameter checks of CANN's
aclnn_weight_quant_batch_matmul_v2.cpp (CANN), which is what answers on a device.

    x                 (M, K)         float16, bfloat16; contiguous or, but for Ascend 950, a
                                     transposed view
    weight            (K, N)         int8, or int32 holding int4: (K, N/8), or the transposed view
                                     (K/8, N) of (N, K/8)
    antiquant_scale   (1,) (1, 1) | (N,) (1, N) | (ceil(K/g), N)   dtype of x
    antiquant_offset  as the scale; ADDED to the weight
    bias              (N,) (1, N)    float16 with float16 x, float32 with bfloat16 x
    antiquant_group_size  0, or a multiple of 32 in [32, K-1]

310P: float16 and int8, per tensor or per channel.  Per channel DOC has scales of (N,) and (1, N),
V2 of (N,) and (N, 1): (N,) alone is taken.  V2 has a shape of scales per group there, DOC says that
there are none: refused.

Not simulated, and refused by name: output quantisation (quant_scale, quant_offset) and 64-bit
scales (fixpipe).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from . import faults
from .antiquant import dequantise, matmul
from .products import A2, A3, A5, P310, product
from .registry import aclnn
from .rules import BF16, F16, F32, I8, I32, I64, OperatorMissing, Rules, is_transposed
from .view import int4_of, view

DOC = "torch_npu 2.13.0 documentation of npu_weight_quant_batchmatmul"
V2 = "CANN aclnnWeightQuantBatchMatmulV2.md"
CANN = "CANN aclnn_weight_quant_batch_matmul_v2.cpp"
NAME = "npu_weight_quant_batchmatmul"
LARGEST, LARGEST_ON_310P = 65535, 512_000_000


@dataclass
class Call:
    """The arguments, as Views."""

    x: Any
    weight: Any
    antiquant_scale: Any
    antiquant_offset: Any
    quant_scale: Any
    quant_offset: Any
    bias: Any
    group: int
    y: Any
    inner_precise: int = 0

    def __post_init__(self) -> None:
        for name in ("x", "weight", "antiquant_scale", "antiquant_offset", "bias", "y"):
            setattr(self, name, view(getattr(self, name)))
        self.transposed = is_transposed(self.weight.t)
        self.packed_as = "int4" if self.weight.t.dtype == I32 else "int8"

    def given(self, *names: str):
        """Those of the tensors that are given, with their names."""
        return [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]


def weight_quant_matmul(**arguments) -> None:
    c = Call(**arguments)
    rule = Rules(NAME, DOC)
    faults.strike(NAME, c.packed_as)
    _check_dtypes_and_formats(rule, c)
    w = _check_shapes(rule, c)
    k, n = w.shape
    _check_groups(rule, c, k, n)
    if c.bias:
        rule.shape("bias", c.bias.t, (n,), (1, n))
        rule.contiguous("bias", c.bias.t)
    rule.one_of("inner_precise", c.inner_precise, 0, 1)
    if c.weight.nz:
        _nz_rules(rule, c.packed_as == "int4", c.transposed, c.x, c.antiquant_scale, c.group, k, n)
        # torch_npu has a call of its own for it on Ascend 950 alone (aclnnWeightQuantBatchMatmulNz)
        rule.that(
            product() == A5,
            "weight",
            "FRACTAL_NZ is for graph mode (torchair), not for single calls: keep ND",
        )
    scale, offset = (_rows(v) for v in (c.antiquant_scale, c.antiquant_offset))
    weights = dequantise(w, scale, offset, c.group)
    c.y.t.copy_(matmul(c.x.t, weights, c.bias and c.bias.t))
    if faults.is_wrong(NAME, c.packed_as):
        c.y.t.mul_(2)


def _rows(parameter) -> torch.Tensor | None:
    """Scale or offset as ``(groups, N)``, or ``(1, 1)``."""
    if parameter is None:
        return None
    return parameter.t.reshape(1, -1) if parameter.t.dim() == 1 else parameter.t


def _check_dtypes_and_formats(rule: Rules, c: Call) -> None:
    wide = product() != P310
    for argument in ("quant_scale", "quant_offset"):
        is_given = getattr(c, argument) is not None
        rule.that(wide or not is_given, argument, "is not supported on 310P")
        if is_given:
            raise OperatorMissing(NAME, f"output quantisation ({argument})")
    x, scale = c.x.t, c.antiquant_scale.t
    rule.dtype("x", x, *((F16, BF16) if wide else (F16,)))
    rule.dtype("weight", c.weight.t, *((I8, I32) if wide else (I8,)))
    if scale.dtype == I64:
        rule.that(
            wide and x.dtype == F16 and c.weight.t.dtype == I8,
            "antiquant_scale",
            "64-bit scales need float16 x and int8 weight, not on 310P",
        )
        raise OperatorMissing(NAME, "64-bit antiquant_scale")
    rule.same_dtype("antiquant_scale", scale, "x", x)
    if c.antiquant_offset:
        rule.same_dtype("antiquant_offset", c.antiquant_offset.t, "antiquant_scale", scale)
    if c.bias:
        wanted = (F16,) if x.dtype == F16 else (F32, BF16) if product() == A5 else (F32,)
        rule.that(
            c.bias.t.dtype in wanted,
            "bias",
            f"dtype is {wanted[0]} where x is {x.dtype} (found {c.bias.t.dtype})",
        )
    rule.same_dtype("y", c.y.t, "x", x)
    for argument, v in c.given("x", "antiquant_scale", "antiquant_offset", "bias"):
        rule.plain(argument, v)


def _check_shapes(rule: Rules, c: Call) -> torch.Tensor:
    """Returns the codes ``(K, N)``, int4 as int8."""
    x, weight = c.x.t, c.weight.t
    rule.ndim("x", x, 2)
    rule.ndim("weight", weight, 2)
    for argument, v in c.given("x", "weight", "antiquant_scale", "antiquant_offset", "bias"):
        rule.not_empty(argument, v.t)
    rule.contiguous_or_transposed("x", x)
    rule.that(product() != A5 or x.is_contiguous(), "x", "is not transposed on Ascend 950", V2)
    rule.contiguous_or_transposed("weight", weight)
    int4 = c.packed_as == "int4"
    if int4:
        rule.that(
            not (c.transposed and tuple(weight.shape) == (1, 8)),
            "weight",
            "int4 in shape (1, 8) with a transposed view is taken for another K",
        )
    w = int4_of(weight) if int4 else weight
    (m, k), (wk, n) = x.shape, w.shape
    rule.equal("weight", "its K", wk, k)
    if product() in (A2, A3):
        rule.range("x", "K", k, 1, LARGEST)
        rule.range("weight", "N", n, 1, LARGEST)
        rule.that(
            not is_transposed(x) or m <= LARGEST,
            "x",
            f"M is in [1, {LARGEST}] where x is transposed (found {m})",
        )
    if product() == P310 and c.antiquant_scale.t.numel() == 1:
        rule.that(
            m * k <= LARGEST_ON_310P,
            "x",
            f"has at most {LARGEST_ON_310P} elements per tensor on 310P (found {m * k})",
            V2,
        )
    rule.shape("y", c.y.t, (m, n))
    rule.contiguous("y", c.y.t)
    return w


def _check_groups(rule: Rules, c: Call, k: int, n: int) -> None:
    group, scale = c.group, c.antiquant_scale.t
    rule.that(
        product() != P310 or group == 0,
        "antiquant_group_size",
        "310P has no per-group weights: the group size is 0",
    )
    rule.that(
        group == 0 or (group % 32 == 0 and 32 <= group <= k - 1),
        "antiquant_group_size",
        f"is 0 or a multiple of 32 in [32, K-1], K = {k} (found {group})",
    )
    allowed = [(ceil(k / group), n)] if group else [(1,), (1, 1), (n,), (1, n)]
    if product() == P310:
        allowed.remove((1, n))
    rule.shape("antiquant_scale", scale, *allowed)
    if c.antiquant_offset:
        rule.shape("antiquant_offset", c.antiquant_offset.t, scale.shape)
    for argument, v in c.given("antiquant_scale", "antiquant_offset"):
        if v.t.dim() == 2 and 1 not in v.t.shape:
            # With a transposed weight CANN reads the memory of scale and offset as (N, G) whatever
            # the strides say (TensorContiguousProcess): a contiguous (G, N) scale is accepted there
            # and gives wrong numbers.
            rule.that(
                is_transposed(v.t) if c.transposed else v.t.is_contiguous(),
                argument,
                f"is {'a transposed view' if c.transposed else 'contiguous'}, as weight is"
                f" (found strides {v.t.stride()})",
                CANN,
            )
        elif v.t.dim() == 1:
            rule.contiguous(argument, v.t)


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


INPUTS = (
    *("x", "weight", "antiquant_scale", "antiquant_offset", "quant_scale", "quant_offset"),
    *("bias", "group"),
)


def _entry(name: str, more: dict[str, str] | None = None, check=lambda weight: None):
    """An entry point with the attributes of V2 and ``more``: their names and letters."""
    names = (*INPUTS, *(more or {}), "y")

    def entry(*arguments):
        call = dict(zip(names, arguments, strict=True))
        check(call["weight"])
        weight_quant_matmul(**call)

    return aclnn(name, "ttttttt" + "w" + "".join((more or {}).values()) + "t")(entry)


def _is_nz(weight) -> None:
    v = view(weight)
    Rules(NAME, DOC).that(
        v.nz, "weight", f"aclnnWeightQuantBatchMatmulNz takes FRACTAL_NZ (found format {v.format})"
    )


v2 = _entry("aclnnWeightQuantBatchMatmulV2")
v3 = _entry("aclnnWeightQuantBatchMatmulV3", {"inner_precise": "w"})
nz = _entry("aclnnWeightQuantBatchMatmulNz", check=_is_nz)
