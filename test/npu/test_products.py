"""The table of Ascend products, and trials of layouts: without a device."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.npu.channel_int8 import ChannelInt8
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPUExactLinear, NPULinear
from ascend_gguf.npu.products import (
    ATTENTION,
    CHANNEL,
    EXPERTS,
    INT4,
    INT8,
    LINEAR,
    NO,
    PRODUCTS,
    TRY,
    YES,
    form_of,
    product_of,
)
from ascend_gguf.npu.trial import try_layout

A2, A3, A5, P310, OLD, OTHERS = PRODUCTS

#: The names that torch_npu knows (its table of ``SocVersion``), and one that it does not.
CHIPS = {
    A2.name: ["Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4-1"],
    A3.name: ["Ascend910_9391", "Ascend910_9362"],
    A5.name: ["Ascend950PR_9599", "Ascend950DT_9571", "Ascend910_9589"],
    P310.name: ["Ascend310P1", "Ascend310P3"],
    OLD.name: ["Ascend910A", "Ascend910B", "Ascend910ProB", "Ascend910PremiumA", "Ascend310B1"],
    OTHERS.name: ["Ascend960", "Ascend310"],
}
LAYOUTS = NPULinear.layouts + NPUExactLinear.layouts


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
def test_chips_of_products(product):
    for chip in CHIPS[product.name]:
        assert product_of(chip) is product, chip
    for answer in product.answers.values():
        assert answer.answer in (YES, NO, TRY) and len(answer.source) > 5


def test_layouts_that_products_take():
    for product in (A2, A3):
        assert product.layouts(LINEAR, LAYOUTS) == LAYOUTS
        assert product.layouts(EXPERTS, EXPERT_LAYOUTS) == EXPERT_LAYOUTS
        assert not product.lacks
    # CANN up to 9.1 has no groups in the products of experts of a 950.
    assert A5.layouts(LINEAR, LAYOUTS) == LAYOUTS
    assert A5.layouts(EXPERTS, EXPERT_LAYOUTS) == ()
    assert A5.layouts(EXPERTS, EXPERT_LAYOUTS, TRY) == EXPERT_LAYOUTS
    for product in (A2, A3, A5, P310):
        assert product.layouts(LINEAR, (ChannelInt8,)) == (ChannelInt8,)
    for product in (P310, OLD):
        assert not product.layouts(LINEAR, LAYOUTS)
        assert not product.layouts(EXPERTS, EXPERT_LAYOUTS, YES, TRY)
    assert {form_of(layout) for layout in P310.layouts(LINEAR, LAYOUTS, TRY)} == {INT8}
    assert ATTENTION in P310.lacks
    # Nothing is known to work.
    assert not OTHERS.layouts(LINEAR, LAYOUTS) and not OTHERS.layouts(EXPERTS, EXPERT_LAYOUTS)
    assert OTHERS.layouts(LINEAR, LAYOUTS, TRY) == LAYOUTS


def test_forms():
    assert form_of(ChannelInt8) == CHANNEL
    assert {layout.name: form_of(layout) for layout in (*LAYOUTS, *EXPERT_LAYOUTS)} == {
        "int4": INT4,
        "int8": INT8,
        "int8, requantized": INT8,
        "planes": INT4,
        "int4, experts": INT4,
        "wide planes, experts": INT4,
        "planes, experts": INT4,
    }


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, ChannelInt8, *EXPERT_LAYOUTS], ids=lambda layout: layout.name
)
def test_trials(layout):
    seen = []

    def check(trial):
        seen.append(trial)
        return None

    def trial(check):
        host = torch.device("cpu")
        return try_layout(layout, torch.float16, check, host, layout in EXPERT_LAYOUTS)

    assert trial(check) is None
    (weight,) = seen
    values = weight.dequantize()
    # Codes of 4 or 5 bits, with an offset: a device that leaves it out is noticed.
    assert (
        values.isfinite().all() and 0.03 < values.std() < 0.15 and abs(values.min() + 0.07) < 1e-3
    )
    refused = RuntimeError("call aclnnX failed, detail:EZ1001: no groups.")

    def refuses(trial):
        raise refused

    assert trial(refuses).endswith(": RuntimeError: EZ1001: no groups.")
    assert trial(lambda weight: "relative error 1") == "relative error 1"
    refused = torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        trial(refuses)
