"""``ascend-gguf plan``: its bytes are those of loading."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from ascend_gguf.config import describe
from ascend_gguf.desk.cache import cache_bytes
from ascend_gguf.desk.chips import CPU, chip_named
from ascend_gguf.desk.cli import main
from ascend_gguf.desk.weights import Ranks, holdings, modules_of
from ascend_gguf.npu.choice import choose
from ascend_gguf.reader import open_gguf

DATA = Path(__file__).parents[1] / "data"
NPU = chip_named("910B3")
DENSE, MOE = DATA / "qwen3-dense-Q4_K_M.gguf", DATA / "qwen3-moe-Q4_K_M.gguf"


def check(engine, path: Path, dtype: str, ranks: Ranks, weights: str = "auto", chip=NPU) -> None:
    """Bytes of each layout, of a token in the KV cache, and of a request's states."""
    config = describe(path)
    modules = modules_of(open_gguf(path), config)
    expected: dict[str, int] = {}
    for held in holdings(modules, config, chip, ranks, dtype, choose({"weights": weights}, path)):
        expected[held.layout] = expected.get(held.layout, 0) + held.nbytes
    options = {"model_loader_extra_config": json.dumps({"weights": weights})}
    sizes = {"tp_size": ranks.tp, "ep_size": ranks.ep, "pp_size": ranks.pp}
    with engine.load(path, probe="probes:memory_of", dtype=dtype, **sizes, **options) as model:
        loaded, _, _ = max(model.probes, key=lambda probe: sum(probe[0].values()))
        token, state = (max(probe[i] for probe in model.probes) for i in (1, 2))
    assert sum(expected.values()) == pytest.approx(sum(loaded.values()), rel=0.02)
    for layout in loaded.keys() | expected.keys():
        tolerance = 0.02 * sum(loaded.values())
        assert expected.get(layout, 0) == pytest.approx(loaded.get(layout, 0), abs=tolerance)
    assert cache_bytes(config, ranks, dtype, chip.is_npu) == pytest.approx((token, state), rel=0.02)


@pytest.mark.parametrize(
    "path, ranks",
    [
        *((path, ranks) for path in (DENSE, MOE) for ranks in (Ranks(), Ranks(2))),
        (MOE, Ranks(2, 2)),
        (MOE, Ranks(4, 2)),
        (DENSE, Ranks(1, 1, 2)),
        (MOE, Ranks(1, 1, 2)),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "-".join(map(str, value)),
)
def test_bytes_are_those_of_loading(npu_engine, path, ranks):
    check(npu_engine, path, "bfloat16", ranks)


def test_dense_weights(npu_engine):
    check(npu_engine, MOE, "float16", Ranks(), "dense")


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(2)], ids=str)
@pytest.mark.parametrize(
    "name",
    ["deepseek-v2-lite", "mistral-4", "qwen3.5", "qwen3.5-moe", "qwen3-next", "nemotron-super"],
)
def test_other_attention(npu_engine, tiny_model, name, ranks):
    check(npu_engine, tiny_model(name).path, "bfloat16", ranks)


@pytest.mark.parametrize(
    "name",
    [
        *("lfm2", "granite-4", "nemotron-h-moe", "falcon-h1", "mamba2", "gemma4-e2b"),
        *("mimo-v2-flash", "nanbeige"),
    ],
)
def test_states_and_sizes_of_layers(npu_engine, tiny_model, name):
    check(npu_engine, tiny_model(name).path, "bfloat16", Ranks())


@pytest.mark.parametrize(
    "name, ranks",
    [
        *(
            (name, Ranks())
            for name in ("lfm2", "granite-4", "nemotron-h-moe", "falcon-h1", "gemma3n")
        ),
        ("falcon-h1", Ranks(2)),
        ("deepseek-v3.2", Ranks()),
        ("hunyuan-4", Ranks(2)),
        ("gemma4-26b", Ranks()),
        ("gemma4-e2b", Ranks(2)),
        ("nemotron-super", Ranks(1, 1, 2)),
        ("step-3.5", Ranks(2)),
        ("laguna-xs", Ranks(2)),
    ],
)
def test_on_the_cpu(cpu_engine, tiny_model, name, ranks):
    check(cpu_engine, tiny_model(name).path, "bfloat16", ranks, chip=CPU)


def facts(capsys, *arguments: object, status: int = 0) -> dict:
    assert main(["plan", *map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_every_way_that_ranks_can_share(capsys):
    found = facts(capsys, MOE, "--count", 4)
    ways = {(row["tp"], row["ep"], row["pp"]) for row in found["ranks"]}
    # Two layers, four heads, two key-value heads, eight experts.
    assert ways == {(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 4, 1), (2, 1, 2)}
    for row in found["ranks"]:
        assert row["packed"]["bytes"] < row["dense"]["bytes"]
        assert row["packed"]["bytes"] == sum(row["packed"]["layouts"].values())


def test_room_for_requests(capsys):
    """Bytes that are left, over those of a token: keys and values of each layer."""
    found = facts(capsys, DENSE, "--memory", 1, "--mem-fraction-static", 0.5)
    (row,) = found["ranks"]
    config = describe(DENSE)
    a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2
    assert row["cache_bytes_a_token"] == a_token
    assert row["packed"]["cache_tokens"] == (
        (500_000_000 - row["packed"]["bytes"]) // a_token // 128 * 128
    )
    assert "--mem-fraction-static 0.5" in found["command"]


def test_a_model_that_needs_more_devices(capsys):
    one = facts(capsys, MOE)["ranks"][0]["packed"]["bytes"]
    memory = ("--memory", 0.95 * one / 0.8 / 1e9)
    assert facts(capsys, MOE, *memory, status=1)["command"] is None
    found = facts(capsys, MOE, *memory, "--count", 2)
    assert "--tp-size 2" in found["command"]
    assert main(["plan", str(MOE), *map(str, memory)]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_310p_computes_in_float16_with_dense_weights(capsys):
    found = facts(capsys, DENSE, "--chip", "Ascend310P3")
    assert found["dtype"] == "float16" and "--dtype float16" in found["command"]
    assert set(found["ranks"][0]["packed"]["layouts"]) == {"dense", "vectors"}


@pytest.mark.parametrize(
    "bad, said",
    [
        (("--chip", "H100"), "no such chip (found H100, expected 910B1"),
        (("--count", "0"), "--count: 0"),
        (("--memory", "-3"), "--memory: -3"),
        (("--mem-fraction-static", "1.5"), "--mem-fraction-static: 1.5"),
    ],
)
def test_bad_input(capsys, bad, said):
    assert main(["plan", str(DENSE), *bad]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_a_picture(capsys, tmp_path):
    picture = tmp_path / "plan.png"
    if find_spec("matplotlib") is None:
        assert main(["plan", str(MOE), "--plot", str(picture)]) == 2
        assert "ascend-gguf[plot]" in capsys.readouterr().err
        return
    assert main(["plan", str(MOE), "--count", "2", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", str(MOE), "--plot", str(tmp_path / "no" / "plan.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err
