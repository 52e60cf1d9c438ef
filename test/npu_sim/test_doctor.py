"""``ascend-gguf doctor`` on the simulated NPU, sound and with faults."""

from __future__ import annotations

import pytest

from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPULinear
from npu_sim.operators import faults

pytestmark = pytest.mark.npu_sim(memory_gb=1)

#: A fault -> the kernels that it spoils.
LINEAR, EXPERTS = "npu_weight_quant_batchmatmul", "npu_grouped_matmul"
SPOILED = {
    "": set(),
    faults.ANTIQUANT_OFFSET: {"int4", "int8"},
    faults.TOP_K_RENORM: {"routing of experts"},
    f"wrong:{LINEAR}:int8": {"int8", "int8, requantized"},
    f"refuse:{LINEAR}": {layout.name for layout in NPULinear.layouts},
    f"missing:{EXPERTS}": {layout.name for layout in EXPERT_LAYOUTS},
    f"wrong:{EXPERTS}": {layout.name for layout in EXPERT_LAYOUTS},
    "refuse:npu_moe_gating_top_k_softmax_v2": {"routing of experts"},
}


@pytest.mark.parametrize("fault", SPOILED)
def test_kernels(monkeypatch, fault):
    from ascend_gguf.desk import doctor

    monkeypatch.setenv(faults.VARIABLE, fault)
    found = doctor._looked_at("kernels", doctor._operators)
    wrong = {one.seen.partition(":")[0] for one in found if one.state == "wrong"}
    assert len(found) >= 7
    assert wrong >= SPOILED[fault] if fault == faults.ANTIQUANT_OFFSET else wrong == SPOILED[fault]
    assert all(one.todo for one in found if one.state == "wrong")


def test_the_installation():
    from ascend_gguf.desk import doctor

    looks = (doctor._torch_npu, doctor._cann, doctor._driver, doctor._npus, doctor._hccl)
    found = [one for look in looks for one in doctor._looked_at("part", look)]
    assert {one.state for one in found} == {"ok"}, found
    said = "\n".join(one.seen for one in found)
    assert "Ascend910B3" in said and "CANN 8.5.0" in said and "1.1 GB free" in said
