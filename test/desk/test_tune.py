"""``ascend-gguf tune`` on the CPU, and what loading makes of its cache on both devices.

On the simulated NPU: ``test/npu_sim/test_tune.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ascend_gguf.config import describe
from ascend_gguf.desk.cli import main
from ascend_gguf.desk.weights import Ranks, modules_of, to_tune
from ascend_gguf.reader import open_gguf
from ascend_gguf.weights import tuned
from ascend_gguf.weights.tuned import Tuned
from npu_sim.build import torch_npu_release

DATA = Path(__file__).parents[1] / "data"
DENSE, MOE = DATA / "qwen3-dense-Q4_K_M.gguf", DATA / "qwen3-moe-Q4_K_M.gguf"
#: What no layout of ours holds.
TORCH = ("dense", "vectors", "latent copies")
NPU = f"Ascend910B3, CANN 8.5.0, torch_npu {torch_npu_release()}"
PROMPT = [5, 77, 130, 9, 42, 301, 11, 250]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "tuned.json"
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    return path


class Clock:
    """It goes on by so many seconds at each product with packed and with dense weights."""

    def __init__(self, monkeypatch, packed: float, dense: float) -> None:
        from ascend_gguf.cpu.linear import BlocksLinear
        from ascend_gguf.srt import tune

        self.now = 0.0
        monkeypatch.setattr(tune, "clock", lambda: self.now)
        monkeypatch.setattr(tune, "_MOST_COPIES", 2)
        for owner, name, seconds in (
            (BlocksLinear, "linear", packed),
            (tune, "experts_product", packed),
            (tune, "_dense_product", dense),
            (tune.F, "linear", dense),
        ):
            monkeypatch.setattr(owner, name, self._taking(seconds, getattr(owner, name)))

    def _taking(self, seconds, product):
        def slow(*arguments):
            start = self.now
            result = product(*arguments)
            self.now = start + seconds  # whatever it calls
            return result

        return slow


def facts(capsys, *arguments: object, status: int = 0) -> dict:
    assert main(["tune", *map(str, arguments), "--json", "--chunk", "16"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("dense, expected", [(0.1, "dense"), (0.19, "blocks"), (1, "blocks")])
def test_the_cpu_chooses_between_packed_and_dense(capsys, monkeypatch, cache, dense, expected):
    """Another layout has to be a twentieth quicker."""
    Clock(monkeypatch, packed=0.195, dense=dense)
    found = facts(capsys, MOE, "--seconds", "3600")
    assert len(found["weights"]) == 6 and found["file"] == str(cache)
    assert {row["chosen"] for row in found["weights"]} == {expected}
    for row in found["weights"]:
        assert row["layouts"]["blocks"]["seconds"]["1"] == pytest.approx(0.195)
    ((device, entries),) = tuned.read().items()
    assert device == found["device"] and len(entries) == 6
    assert {one.is_wider for one in entries.values()} == {expected == "dense"}


def test_text_says_the_same(capsys, monkeypatch, cache):
    Clock(monkeypatch, packed=0.2, dense=0.1)
    cache.write_text("damaged")
    assert main(["tune", str(DENSE), "--chunk", "16", "--seconds", "3600"]) == 0
    said = capsys.readouterr()
    for words in ("embedding", "Q6_K", "1536 x 256", "*  dense", "200,000", '{"tune": "off"}'):
        assert words in said.out
    assert "as chosen" in said.out and str(cache) in said.out
    assert "tuned.json: not what `ascend-gguf tune` writes. It is written anew." in said.err


@pytest.mark.parametrize(
    "bad, said",
    [
        (("--tp-size", "3"), "3 ranks cannot share 4 attention heads"),
        (("--tp-size", "2", "--ep-size", "3"), "experts that are dealt to 3 parts"),
        (("--seconds", "-1"), "--seconds: -1"),
        (("--chunk", "0"), "--chunk: 0"),
    ],
)
def test_bad_input(capsys, cache, bad, said):
    assert main(["tune", str(MOE), *bad]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1 and not cache.exists()


def choose(path: Path, device: str, layouts: dict[str, str], *ranks: int) -> set:
    """Write a cache in which every weight has the layout of its role; returns what it is for."""
    dtype = "bfloat16"
    weights = to_tune(modules_of(open_gguf(path), describe(path)), Ranks(*ranks), dtype)
    entries = {
        name: Tuned(layouts[role], True) for name, (role, *_) in weights.items() if role in layouts
    }
    tuned.write(device, entries)
    return set(entries)


def loaded(engine, path: Path, cache: Path, options: dict | None = None, **more) -> tuple:
    """Bytes of each layout, log-probabilities of a prompt, and the log."""
    more = {"dtype": "bfloat16", "model_loader_extra_config": json.dumps(options or {})} | more
    environment = {tuned.VARIABLE: str(cache)}
    with engine.load(path, probe="probes:bytes_by_form", environment=environment, **more) as model:
        return model.probes[0], model.prompt_logprobs(PROMPT), model.log


def near(found: list[float], expected: list[float]) -> bool:
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(found) < 0.06


def test_loading_obeys_on_the_cpu(cpu_engine, cache):
    from ascend_gguf.srt.tune import device_name

    before, expected, _ = loaded(cpu_engine, MOE, cache)
    assert before.keys() == {"blocks", "vectors", "dense"}
    choose(MOE, device_name(), {"linear": "dense", "experts": "dense"})
    after, found, log = loaded(cpu_engine, MOE, cache)
    assert after["blocks"] < before["blocks"] / 4 and near(found, expected)
    assert "weights have the layout that `ascend-gguf tune` found quickest here" in log
    off, found, log = loaded(cpu_engine, MOE, cache, {"tune": "off"})
    assert off == before and found == expected and "found quickest" not in log
    cache.write_text("damaged")
    off, found, log = loaded(cpu_engine, MOE, cache)
    assert off == before and found == expected
    assert log.count("not what `ascend-gguf tune` writes. It is ignored.") == 1


def test_loading_obeys_on_an_npu(npu_engine, cache):
    before, expected, _ = loaded(npu_engine, MOE, cache)
    assert before.keys() >= {"int8", "planes", "int4, experts", "planes, experts"}
    layouts = {"linear": "wide planes", "output": "planes, rows", "experts": "planes, experts"}
    choose(MOE, NPU, layouts)
    after, found, log = loaded(npu_engine, MOE, cache)
    others = {name for name in before if name.endswith(", rows")} | {"shared offsets"}
    assert after.keys() - others == {*layouts.values(), "vectors", "dense"} - others
    assert near(found, expected)
    assert "weights have the layout that `ascend-gguf tune` found quickest here" in log


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(2)], ids=str)
@pytest.mark.parametrize("name", ["deepseek-v2-lite", "qwen3.5", "qwen3moe"])
def test_every_weight_is_found_again(npu_engine, tiny_model, cache, name, ranks):
    """Shapes and types, as the desk knows them, are those of loading."""
    path = MOE if name == "qwen3moe" else tiny_model(name).path
    roles = dict.fromkeys(("linear", "output", "embedding", "experts"), "dense")
    chosen = choose(path, NPU, roles, ranks.tp)
    after, _, log = loaded(npu_engine, path, cache, tp_size=ranks.tp)
    assert int(re.search(r"(\d+) weights have the layout", log)[1]) >= len(chosen) > 2
    assert all(name.endswith(", rows") or name in TORCH for name in after)


def test_the_last_stages_copy_of_a_tied_matrix_is_found_again(npu_engine, cache):
    """It is an output matrix, which the file has not."""
    assert "output.weight" not in open_gguf(DENSE).tensors
    assert len(choose(DENSE, NPU, {"output": "dense", "embedding": "dense"}, 1, 1, 2)) == 1
    _, _, log = loaded(npu_engine, DENSE, cache, pp_size=2)
    assert re.findall(r"(\d+) weights have the layout", log) == ["1"]
