"""The operators as a user reaches them: torch_npu's own code above, the simulated device below.
One process a product.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGES = HERE.parents[1] / "python"

RIGHT = [
    *("pack", "dense", "dense transposed", "grouped int4", "grouped plain", "grouped FRACTAL_NZ"),
    *("store", "prefill", "paged", "fused", "fused v2", "routing", "routing softmax of the best"),
    *("norm", "swiglu", "grammar mask"),
]
REFUSED = {
    "pack values": "npu_convert_weight_to_int4pack: argument 'weight': values lie in [-8, 7]",
    "pack 3-D": "npu_convert_weight_to_int4pack: argument 'weight': has 2 dimensions",
    "dense scale beside transposed": "npu_weight_quant_batchmatmul: argument 'antiquant_scale': is "
    "a transposed view, as weight is",
    "dense scale float32": "npu_weight_quant_batchmatmul: argument 'antiquant_scale': dtype equals "
    "that of x",
    "dense bias": "npu_weight_quant_batchmatmul: argument 'bias': dtype is torch.float32",
    "grouped no offset": "npu_grouped_matmul: argument 'antiquant_offset': is required",
    "grouped too many rows": "npu_grouped_matmul: argument 'group_list': ends at M = 7",
    "cast unaligned": "npu_format_cast: argument 'self': FRACTAL_NZ",
    "store out of the cache": "atb::_npu_reshape_and_cache: argument 'slot_indices': values lie in "
    "[0, 511]",
    "prefill with an unaligned prefix": "atb::_npu_flash_attention_qlens: argument 'context_lens': "
    "what is cached already is a multiple of 128",
    "fused block out of range": "npu_fused_infer_attention_score: argument 'block_table': values "
    "lie in [0, 3]",
    "routing expert out of range": "npu_moe_init_routing_v2: argument 'expert_idx': values lie in "
    "[0, 3]",
    "norm gamma float32": "npu_rms_norm: argument 'gamma': dtype equals that of x",
    "top k above 1024": "npu_top_k_top_p: argument 'k': values lie in [1, 1024]",
    "no model": "aclnnAscendQuantV3",
}


pytestmark = pytest.mark.npu_sim(own_process=True)


def results(soc: str) -> dict[str, str]:
    command = [sys.executable, "-m", "npu_sim", "run", "--soc", soc, "--devices", "1", "--"]
    command += [sys.executable, str(HERE / "end_to_end_calls.py")]
    path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("soc", ["910B3", "910_93"])
def test_calls(soc):
    """Right ones are taken; of wrong ones operator, argument and rule are named."""
    found = results(soc)
    assert {name: found[name] for name in RIGHT} == dict.fromkeys(RIGHT, "ok")
    assert not {name: found[name] for name, what in REFUSED.items() if what not in found[name]}


def test_310p_and_950():
    assert "argument 'product'" in results("310P3")["dense part"]
    found = results("950")
    assert found["dense"] == found["grouped FRACTAL_NZ"] == found["routing"] == "ok"
    assert "int4 is per group on Atlas A2 and A3 only" in found["grouped int4"]
    assert "argument 'product'" in found["store"]
