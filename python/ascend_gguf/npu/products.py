"""Ascend products: which packed weights their operators take, and who says so.

The one place that knows it; docs/ascend_npu.md has the same table.  Where the documents say
nothing, or not the same, a form is tried: with a small weight, before anything is loaded, and it
counts as missing until that was right (:mod:`.trial`).  What is taken is checked too, with the
model's own shapes (:mod:`.self_check`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ascend_gguf.weights.layout import Layout

#: The operators that multiply with packed weights: of linear layers, and of experts.
LINEAR, EXPERTS = "npu_weight_quant_batchmatmul", "npu_grouped_matmul"

#: Operators that the engine calls, and that not every product has: attention over the KV cache,
#: rows for the experts, and RoPE (CANN, aclnnRopeWithSinCosCacheV2.md).
ATTENTION, ROUTING = "npu_fused_infer_attention_score", "npu_moe_init_routing_v2"
ROPE = "npu_mrope"

#: What the operators are given.  Nibble planes are int4 to them.
INT4, INT8, CHANNEL = "int4 per group", "int8 per group", "int8 per channel"

#: Whether a product takes a form.
YES, NO, TRY = "yes", "no", "try"

_V2 = "CANN, aclnnWeightQuantBatchMatmulV2.md"
_V5 = "CANN, aclnnGroupedMatmulV5.md"
_WHEEL = "torch_npu, documentation of"
_BOTH_YES = f"{_V2}: T, C and G quantization of int8 and int4"
_CHANNEL = f"{_V2}: per channel; {_WHEEL} {LINEAR}, table 1"
_GROUPED_INT8 = f"{_V5}: int8 weights are per channel"
_NOT_LISTED = "not among the supported products"
_UNKNOWN = "no document"


@dataclass(frozen=True)
class Answer:
    """Whether an operator takes a form of weights: `YES`, `NO` or `TRY`, and who says so."""

    answer: str
    source: str


def _answers(
    linear_int4: Answer,
    linear_int8: Answer,
    experts_int4: Answer,
    experts_int8: Answer,
    *,
    channel: str = YES,
) -> dict[tuple[str, str], Answer]:
    return {
        (LINEAR, INT4): linear_int4,
        (LINEAR, INT8): linear_int8,
        (LINEAR, CHANNEL): Answer(channel, _CHANNEL if channel == YES else linear_int8.source),
        (EXPERTS, INT4): experts_int4,
        (EXPERTS, INT8): experts_int8,
    }


@dataclass(frozen=True)
class Product:
    """A family of chips.

    Attributes:
        name: what it is called.
        chips: a regular expression of their names, as CANN gives them.
        answers: of each operator and form.
        scatters_cache: whether keys and values are written by an operator of CANN, as that of ATB
            is for the 910B family and the 910_93 alone.
        reads_planes: whether products of few inputs with :class:`.WidePlanes` take a template of
            their own (CANN's tiling of ``WeightQuantBatchMatmulV2``).
        lacks: operators that the engine calls and that the documents do not have there; torch's
            own are used instead.
        has_bfloat16: whether its operators take bfloat16 (torch_npu, documentation of the
            operators; CANN, those of norms and activations: float16 and float32 on a 310P).
    """

    name: str
    chips: str
    answers: dict[tuple[str, str], Answer]
    scatters_cache: bool = False
    reads_planes: bool = False
    lacks: frozenset[str] = frozenset()
    has_bfloat16: bool = True

    def answer(self, operator: str, layout: type[Layout]) -> str:
        """Whether an operator takes weights of a layout."""
        return self.answers[operator, form_of(layout)].answer

    def layouts(
        self, operator: str, layouts: Iterable[type[Layout]], *answers: str
    ) -> tuple[type[Layout], ...]:
        """Those of the layouts that the operator takes, with one of the answers; `YES` alone by
        default.
        """
        return tuple(x for x in layouts if self.answer(operator, x) in (answers or (YES,)))


_A2_A3 = _answers(
    Answer(YES, _BOTH_YES),
    Answer(YES, _BOTH_YES),
    Answer(YES, f"{_V5}: int4 per group; offsets as in SGLang's AWQAscendMoEKernel"),
    Answer(NO, _GROUPED_INT8),
)
_UNSUPPORTED = _answers(
    *[Answer(NO, f"{_V2}: {_NOT_LISTED}")] * 2,
    *[Answer(NO, f"{_V5}: {_NOT_LISTED}")] * 2,
    channel=NO,
)

#: The last one has every chip that the others do not have.
PRODUCTS = (
    Product("Atlas A2 (910B1 to 910B4)", r"Ascend910B\d.*", _A2_A3, reads_planes=True),
    Product("Atlas A3 (910_93)", r"Ascend910_93.*", _A2_A3, reads_planes=True),
    Product(
        "Ascend 950",
        r"Ascend(950|910_95).*",
        _answers(
            Answer(YES, f"{_V2}: A16W4, C and G quantization"),
            Answer(YES, f"{_V2}: A16W8, T, C and G quantization"),
            Answer(TRY, f"{_V5}: per channel alone up to CANN 9.1, groups of 32 to 256 later"),
            Answer(NO, _GROUPED_INT8),
        ),
        scatters_cache=True,
        lacks=frozenset((ROPE,)),
    ),
    Product(
        "Atlas inference series (310P)",
        r"Ascend310P.*",
        _answers(
            Answer(NO, f"{_V2}: int8 alone"),
            Answer(TRY, f"{_WHEEL} {LINEAR}: no groups; {_V2}: a shape of scales per group"),
            Answer(NO, f"{_WHEEL} {EXPERTS}: float16 alone"),
            Answer(NO, f"{_WHEEL} {EXPERTS}: float16 alone"),
        ),
        scatters_cache=True,
        lacks=frozenset((ATTENTION, ROUTING, ROPE)),
        has_bfloat16=False,
    ),
    Product(
        "Atlas training series, Atlas 200I/500 A2",
        r"Ascend910(A|B|ProA|ProB|PremiumA)|Ascend310B.*",
        _UNSUPPORTED,
    ),
    Product("others", r".*", _answers(*[Answer(TRY, _UNKNOWN)] * 4, channel=TRY)),
)


def form_of(layout: type[Layout]) -> str:
    """What the operators are given of a layout, which has a ``packing`` if it has groups."""
    packing = getattr(layout, "packing", None)
    if packing is None:
        return CHANNEL
    return INT4 if packing.planes or packing.bits == 4 else INT8


def product_of(chip: str) -> Product:
    """The product of a chip, by its name as CANN gives it, such as ``Ascend910B3``."""
    return next(product for product in PRODUCTS if re.fullmatch(product.chips, chip))


@functools.cache
def this_product() -> Product:
    """That of this process's NPU."""
    return product_of(torch.npu.get_device_name())  # type: ignore[attr-defined]  # of torch_npu
