"""``ascend-gguf tune`` on the simulated NPU, whose time is what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ascend_gguf.desk.cli import main
from ascend_gguf.weights import tuned
from npu_sim.build import torch_npu_release
from npu_sim.operators import faults

pytestmark = pytest.mark.npu_sim(memory_gb=1)

DATA = Path(__file__).parents[1] / "data"
MOE = DATA / "qwen3-moe-Q4_K_M.gguf"
DEVICE = f"Ascend910B3, CANN 8.5.0, torch_npu {torch_npu_release()}"

Seconds = Callable[[str, int], float]


@pytest.fixture
def tune(monkeypatch, tmp_path, capsys) -> Callable[..., dict]:
    """What ``ascend-gguf tune`` finds where operators take so many seconds."""
    from ascend_gguf.srt import tune as of_patch
    from ascend_gguf.srt.layers.quantization import kernels
    from npu_sim.recorder import device_clock

    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
    monkeypatch.setattr(of_patch, "_MOST_COPIES", 1)
    kernels.works.cache_clear()

    def tuned_by(seconds: Seconds, *arguments: str, status: int = 0) -> dict:
        with device_clock(seconds) as clock, monkeypatch.context() as context:
            context.setattr(of_patch, "clock", clock)
            options = ("--chunk", "64", "--seconds", "3600", "--json")
            assert main(["tune", str(MOE), *options, *arguments]) == status
        return json.loads(capsys.readouterr().out)

    yield tuned_by
    kernels.works.cache_clear()


def by_bytes(name: str, nbytes: int) -> float:
    return 3e-6 * nbytes


def slow(part: str) -> Seconds:
    """As if some operators read all of it five times."""
    return lambda name, nbytes: (5 if part in name else 1) * by_bytes(name, nbytes)


def chosen(found: dict) -> dict[str, set[str]]:
    by_role: dict[str, set[str]] = {}
    for row in found["weights"]:
        by_role.setdefault(row["role"], set()).add(row["chosen"])
    return by_role


def test_where_bytes_decide_nothing_changes(tune):
    before = torch.npu.memory_allocated()
    found = tune(by_bytes)
    assert found["device"] == DEVICE and found["takes_wider"]
    assert [row["role"] for row in found["weights"]].count("experts") == 3
    for row in found["weights"]:
        times = {name: of["seconds"] for name, of in row["layouts"].items()}
        assert row["chosen"] == next(iter(times)) and "dense" in times
        counts = ["1", "8", "32"] + ["64"] * (row["role"] != "output")
        assert all(list(one) == counts for one in times.values())
        assert all(0 < one["1"] <= one["32"] for one in times.values())
    assert torch.npu.memory_allocated() == before


def test_an_operator_that_is_slow_is_not_chosen(tune):
    assert chosen(tune(slow("WeightQuant"))) == {
        "linear": {"dense"},
        "output": {"dense"},
        "experts": {"int4, experts", "planes, experts"},
    }
    # It is added to what is known.
    tune(by_bytes, "--dtype", "float16")
    known = tuned.read()[DEVICE]
    assert {one.layout for key, one in known.items() if "bfloat16" in key} > {"dense"}
    assert known["linear 256 x 256 Q5_K bfloat16"].is_wider


def test_no_wider_layout_for_a_model_that_fills_the_device(tune, monkeypatch):
    from ascend_gguf.srt import tune as of_patch

    monkeypatch.setattr(of_patch, "memory", lambda: (1 << 29, 1 << 22))
    found = tune(slow("WeightQuant"))
    assert not found["takes_wider"]
    first = {row["key"]: row["layouts"] for row in found["weights"]}
    for row in found["weights"]:
        nbytes = [of["bytes"] for of in first[row["key"]].values()]
        assert row["layouts"][row["chosen"]]["bytes"] <= nbytes[0]


def test_a_rank_has_its_share(tune):
    whole, half = tune(by_bytes), tune(by_bytes, "--tp-size", "2")
    shapes = [{tuple(row["shape"]) for row in found["weights"]} for found in (whole, half)]
    assert (8, 512, 256) in shapes[0] and (8, 256, 256) in shapes[1]


@pytest.mark.parametrize("kind", ["refuse", "wrong", "missing"])
def test_an_operator_that_does_not_work_is_not_timed(tune, monkeypatch, kind):
    monkeypatch.setenv(faults.VARIABLE, f"{kind}:npu_weight_quant_batchmatmul")
    found = tune(by_bytes)
    assert {row["role"] for row in found["weights"]} == {"experts"}


def test_time_and_memory_are_bounded(tune, monkeypatch):
    from ascend_gguf.srt import tune as of_patch

    found = tune(by_bytes, "--seconds", "0.01")
    problems = {of.get("problem") for row in found["weights"] for of in row["layouts"].values()}
    assert "not timed within 0.01 s" in problems and found["weights"][-1]["chosen"] is None
    assert found["weights"][-1]["key"] not in tuned.read().get(DEVICE, {})
    monkeypatch.setattr(of_patch, "memory", lambda: (1000, 1 << 40))
    found = tune(by_bytes)
    problems = {of["problem"] for row in found["weights"] for of in row["layouts"].values()}
    assert all("not enough memory" in problem for problem in problems)
