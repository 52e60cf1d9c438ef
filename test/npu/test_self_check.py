"""What the self-check makes of a device: without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.npu.linear import NPUExactLinear, NPULinear
from ascend_gguf.npu.self_check import SelfCheck, refusal
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from random_model import random_blocks

DTYPE = torch.float16

#: Messages as torch_npu 2.1 to 2.10 raise them, and what a log should quote.  From issues of
#: vllm-ascend (1736, 3588, 4679) and lmdeploy (2769), shortened.
MESSAGES = {
    "stamped code in brackets": (
        "npu_weight_quant_batchmatmul:build/CMakeFiles/torch_npu.dir/compiler_depend.ts:99 NPU "
        "function error: call aclnnWeightQuantBatchMatmulV2 failed, error code is 161002\n"
        "[ERROR] 2026-03-14-17:09:42 (PID:2350, Device:0, RankID:-1) ERR00100 PTA call acl api "
        "failed.\n[PID: 2350] 2026-03-14-17:09:42.452.226 AclNN_Parameter_Error(EZ1001): "
        "antiquantGroupSize should be 128 or 64, but is 32.\n",
        "RuntimeError: EZ1001: antiquantGroupSize should be 128 or 64, but is 32.",
    ),
    "code before the stamp": (
        "call aclnnBatchMatMul failed, detail:EZ1001: 2024-11-18-06:32:38.253.100 Input shapes "
        "differ.\n        TraceBack (most recent call last):\n",
        "RuntimeError: EZ1001: Input shapes differ.",
    ),
    "inner error": (
        "call aclnnQuantMatmulWeightNz failed, detail:E69999: Inner Error!\nE69999: [PID: 301341] "
        "2025-07-08-19:23:04.799.485 op[QuantBatchMatmulV3], this platform only supports [false]\n",
        "RuntimeError: E69999: op[QuantBatchMatmulV3], this platform only supports [false]",
    ),
    "no code": (
        "\n  aclnnNew not in libopapi.so\nmore",
        "RuntimeError: aclnnNew not in libopapi.so",
    ),
    "a line without a code": (
        "operator():file.cpp:177 NPU function error: call aclnnX failed, error code is 161002\n"
        "[ERROR] 2026-03-14-17:09:42 (PID:2350, Device:0) ERR00100 PTA call acl api failed.\n"
        "aclnnX is not there\n",
        "RuntimeError: aclnnX is not there",
    ),
    "control characters": ("E\x1b[31m\ttold", "RuntimeError: E\\x1b[31m\\ttold"),
    "nothing": ("", "RuntimeError: no message"),
    "long": ("x" * 5000, f"RuntimeError: {'x' * 240}..."),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_one_line_of_an_error(message):
    text, expected = MESSAGES[message]
    assert refusal(RuntimeError(text)) == expected


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("aclrtMalloc failed, error code is 207001"),
    RuntimeError("detail:EL0004: 2026-01-01 Failed to allocate memory."),
    MemoryError(),
]


def make(layouts, type_name: str = "Q4_K", seed: int = 0) -> Layout:
    blocks, _ = random_blocks(np.random.default_rng(seed), type_name, (16, 256))
    matrix = BlockTensor(torch.from_numpy(blocks).view(16, -1), GGMLQuantizationType[type_name])
    piece = Piece(0, 0, 0, matrix)
    layout = allocated(Weight(None, 16, 256, DTYPE, (piece,)), layouts)
    layout.put(piece)
    return layout


class Device:
    """A device that is wrong with some layouts, and what it was asked."""

    def __init__(self, **wrong: str | Exception) -> None:
        self.wrong = wrong
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.check = SelfCheck(self.failed.append)

    def settled(self, layout: Layout) -> Layout:
        return self.check.settled(layout, self._check)

    def _check(self, layout: Layout) -> str | None:
        self.asked.append(layout.name)
        found = self.wrong.get(layout.name.replace(", ", "_"))
        if isinstance(found, Exception):
            raise found
        return found


LAYOUTS = (*NPULinear.layouts, Dense)
EXACT = (*NPUExactLinear.layouts, Dense)
REFUSED = RuntimeError("call aclnnX failed, detail:EZ1001: no such group.")
MISSING = AttributeError("'_OpNamespace' 'npu' object has no attribute 'npu_x'")


@pytest.mark.parametrize("bad", ["relative error 1", REFUSED, MISSING], ids=str)
@pytest.mark.parametrize(
    ("layouts", "type_name", "chain"),
    [
        (LAYOUTS, "Q4_K", ["int4", "int8", "int8, requantized", "planes", "dense"]),
        (EXACT, "Q4_0", ["int4", "int8", "planes", "dense"]),
        (LAYOUTS, "Q6_K", ["int8, requantized", "planes", "dense"]),
    ],
)
def test_the_next_layout_that_is_right(layouts, type_name, chain, bad, caplog):
    original = make(layouts, type_name).dequantize()
    for good in range(1, len(chain)):
        device = Device(**{name.replace(", ", "_"): bad for name in chain[:good]})
        caplog.clear()
        found = device.settled(make(layouts, type_name))
        assert found.name == chain[good]
        error = (found.dequantize() - original).norm() / original.norm()
        assert error < (0.01 if "int8, requantized" in chain else 0.001)
        assert list(found.unsupported)[-good:] == chain[:good]
        assert device.asked == [name for name in chain[: good + 1] if name != "dense"]
        problems = [bad] * good
        if isinstance(bad, Exception):
            problems = [f"{name} 16 x 256 in float16: {refusal(bad)}" for name in chain[:good]]
        assert device.failed == problems
        assert [record.getMessage() for record in caplog.records] == [
            f"falling back to {chain[good]} weights: self-check failed for {problem}"
            for problem in problems
        ]


def test_weights_of_one_shape_are_tried_once():
    device = Device(int4=REFUSED, int8=REFUSED)
    weights = [make(EXACT, seed=seed) for seed in range(3)]
    found = [device.settled(weight) for weight in weights]
    assert [layout.name for layout in found] == ["planes"] * 3
    assert device.asked == ["int4", "int8", "planes"]
    for layout, weight in zip(found, weights, strict=True):
        assert (layout.dequantize() - weight.dequantize()).abs().max() < 0.01
    # An output matrix that is the embedding is converted once.
    assert device.settled(weights[0]) is found[0]


def test_a_device_that_is_right():
    device, weight = Device(), make(EXACT)
    assert device.settled(weight) is weight and not device.failed


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_memory_that_ran_out_is_no_mismatch(error):
    with pytest.raises(type(error)) as raised:
        Device(int4=error).settled(make(EXACT))
    assert raised.value is error


def test_nothing_comes_after_loading():
    weight = make(EXACT)
    weight.source = None
    with pytest.raises(ValueError, match="int4"):
        Device(int4=REFUSED).settled(weight)
