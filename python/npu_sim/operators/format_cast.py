"""npu_format_cast and what FRACTAL_NZ asks of a weight.

The format is a tag: memory stays in ND order, so a view of an NZ tensor shows the right numbers
here and garbage on a device.  That is why operators that do not take NZ refuse the tag
(`Rules.plain`).

Alignment: a tile is 16 rows by 32 bytes.  torch_npu pads what is not aligned and the products then
refuse it or, worse, read the padding (CANN's aclnn_grouped_matmul.cpp logs and goes on), so the
cast itself refuses here, as SGLang 0.5.23's npu_format_cast does before it calls the operator
(hardware_backend/npu/utils.py, _is_nz_aligned).
"""

from __future__ import annotations

from .registry import aclnn
from .rules import BF16, F16, FORMAT_ND, FORMAT_NZ, I8, I32, U8, OperatorMissing, Rules
from .view import View, view

SOURCE = (
    "SGLang 0.5.23 hardware_backend/npu/utils.py _is_nz_aligned; "
    "CANN aclnn_grouped_matmul.cpp TransWeightToNzCheckAlign"
)

# dtype -> tile (rows, columns); int32 and uint8 carry packed int4 and are held to 64 columns, as
# production code holds them
NZ_TILE = {BF16: (16, 16), F16: (16, 16), I8: (16, 32), I32: (16, 64), U8: (16, 64)}


def check_format_cast(tensor, acl_format: int) -> None:
    """Raises OperatorRuleError unless `tensor` may be cast to `acl_format`."""
    v = view(tensor)
    rule = Rules("npu_format_cast", SOURCE)
    rule.undocumented(
        acl_format in (0, FORMAT_ND, FORMAT_NZ), "acl_format", f"a cast to format {acl_format}"
    )
    if acl_format != FORMAT_NZ:
        return
    rule.that(
        v.t.dim() >= 2,
        "self",
        f"FRACTAL_NZ needs at least 2 dimensions (found shape {tuple(v.t.shape)})",
    )
    rule.dtype("self", v.t, *NZ_TILE)
    rows, columns = NZ_TILE[v.t.dtype]
    rule.that(
        v.t.shape[-2] % rows == 0 and v.t.shape[-1] % columns == 0,
        "self",
        f"FRACTAL_NZ of {v.t.dtype} stores tiles of {rows} x {columns}: the last two dimensions "
        f"divide by them (found {tuple(v.t.shape)})",
    )
    # A view's strides are lost in the cast; production code makes the tensor contiguous first or
    # casts it whole.
    rule.contiguous("self", v.t)


@aclnn("aclnnNpuFormatCast", "tt", views=False)
def format_cast(source, target):
    """Ascend 950's cast;

    on A2 and A3 torch_npu casts by another way, which `guarded_format_cast` checks.
    """
    # torch_npu tags the target by its dimensions; its storage has two more in FRACTAL_NZ.
    is_nz = len(target.storage_shape) == len(target.shape) + 2
    check_format_cast(source, FORMAT_NZ if is_nz else FORMAT_ND)
    target.t.copy_(view(source).t)


def guarded_format_cast(input, acl_format, *, customize_dtype=None, input_dtype=None):
    """npu_format_cast on an NPU tensor: the check, then torch_npu's own cast, which tags it."""
    import torch

    if customize_dtype is not None or input_dtype is not None:
        raise OperatorMissing("npu_format_cast", "customize_dtype, input_dtype")
    check_format_cast(View(input), acl_format)
    return torch.ops.npu._npu_format_cast(input, acl_format)


# Kernels for NPU tensors that stand before torch_npu's.  The in-place cast is left alone: torch_npu
# uses it within other operators.
GUARDS = {"npu::npu_format_cast": guarded_format_cast}
