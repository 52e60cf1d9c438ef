"""Weights that are looked at and replaced while the server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import requests

from hf_models import TINY
from hf_models import write_model as write_tiny
from random_model import PROMPT, Model, write_model
from rewrite import rewrite
from serving import CPU, NPU_ONE, Server, cpu_environment, mean_error

DATA = Path(__file__).parents[2] / "data"

#: A mixture of experts with a shared expert and biases, each version of other weights and types.
VERSIONS = {
    "first": {"seed": 1},
    "other-types": {
        "seed": 2,
        "default": "Q8_0",
        "types": {
            "attn_q.w": "F16",
            "gate_exps": "Q4_K",
            "down_exps": "Q5_1",
            "token_embd": "Q6_K",
        },
    },
    "numbers": {"seed": 3, "default": "F16"},
    "same-types": {"seed": 4},
}


def _write_versions(folder: Path, arch: str) -> dict[str, Model]:
    return {
        name: write_model(folder / f"{name}.gguf", arch=arch, **spec)
        for name, spec in VERSIONS.items()
    }


def _post(server: Server, route: str, **body) -> requests.Response:
    return requests.post(f"{server.url}/{route}", json=body, timeout=120)


def _update(server: Server, path: Path, **options) -> requests.Response:
    return _post(server, "update_weights_from_disk", model_path=str(path), **options)


def _check_answers(server: Server, model: Model, limit: float) -> None:
    """Prompts by the weights of ``model``, and steps of decoding that agree with prompts."""
    assert server.mean_error(PROMPT, model.logprobs()) <= limit
    tokens, decoded = server.continued(PROMPT, 12)
    computed = server.prompt_logprobs(tokens)
    assert np.abs(np.subtract(decoded, computed)).mean() <= limit


def _check_updates(server: Server, versions: dict[str, Model], limit: float) -> None:
    _check_answers(server, versions["first"], limit)
    for name in (*list(versions)[1:], "first"):
        reply = _update(server, versions[name].path)
        assert (reply.status_code, reply.json()["success"]) == (200, True), reply.text
        _check_answers(server, versions[name], limit)
    info = requests.get(f"{server.url}/get_model_info", timeout=10).json()
    assert info["model_path"] == str(versions["first"].path)


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> dict[str, Model]:
    return _write_versions(tmp_path_factory.mktemp("versions"), "qwen2moe")


@pytest.fixture(scope="module")
def server(zygote, versions, tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("updates") / "log"
    with zygote.serve(versions["first"].path, log, *CPU, "--dtype", "float32") as server:
        yield server


def test_a_file_replaces_the_weights(server, versions):
    _check_updates(server, versions, 1e-4)


def test_the_file_that_is_served_may_be_written_anew(server, versions, tmp_path):
    path = tmp_path / "checkpoint.gguf"
    for name in ("numbers", "same-types", "first"):  # of different lengths
        path.write_bytes(versions[name].path.read_bytes())
        assert _update(server, path).status_code == 200
        assert server.mean_error(PROMPT, versions[name].logprobs()) <= 1e-4


@pytest.mark.parametrize("name", ["minicpm3"])  # whose class deletes what it has loaded
def test_models_that_change_as_they_load(cpu_engine, tiny_model, tmp_path, name):
    new = write_tiny(tmp_path, TINY[name], seed=1)
    options = {"dtype": "float32", "environment": {"NEW_FILE": str(new.path)}}
    with cpu_engine.load(tiny_model(name).path, probe="probes:update", **options) as model:
        assert model.probes[0][0], model.probes
        ((tokens, found),) = model.continued([PROMPT], 8)
    assert mean_error(found, new.logprobs(tokens)) <= 1e-4


def _file_of_nan(versions: dict[str, Model], folder: Path) -> Path:
    def edit(name: str, data: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if name == "blk.1.attn_v.weight":
            data = data.copy()
            data[-1, :2] = 0xFF  # the scale of a block of Q4_0, Q8_0 or Q4_K
        return [(name, data)]

    rewrite(versions["first"].path, folder / "nan.gguf", edit)
    return folder / "nan.gguf"


def _cut_short(versions: dict[str, Model], folder: Path) -> Path:
    content = versions["first"].path.read_bytes()
    (folder / "short.gguf").write_bytes(content[: len(content) * 2 // 3])
    return folder / "short.gguf"


def _other_rope(versions: dict[str, Model], folder: Path) -> Path:
    metadata = {"qwen2moe.rope.freq_base": 5e5}
    rewrite(versions["first"].path, folder / "rope.gguf", metadata=metadata)
    return folder / "rope.gguf"


def _other_tokens(versions: dict[str, Model], folder: Path) -> Path:
    reader = gguf.GGUFReader(versions["first"].path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokens[300], tokens[301] = tokens[301], tokens[300]
    metadata = {"tokenizer.ggml.tokens": tokens}
    rewrite(versions["first"].path, folder / "tokens.gguf", metadata=metadata)
    return folder / "tokens.gguf"


def _other_size(versions: dict[str, Model], folder: Path) -> Path:
    return write_model(folder / "size.gguf", arch="qwen2moe", layers=1).path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *_: DATA / "qwen3-dense-Q4_K_M.gguf", "another model than the one that is served"),
        (lambda *_: DATA / "README.md", "not a GGUF file"),
        (lambda *_: DATA / "missing.gguf", "no such file"),
        (_file_of_nan, "tensor 'blk.1.attn_v.weight': "),
        (_cut_short, "bytes"),
        (_other_rope, "rope_parameters differs"),
        (_other_tokens, "another vocabulary"),
        (_other_size, "num_hidden_layers differs"),
    ],
    ids=["arch", "format", "missing", "nan", "short", "rope", "tokens", "size"],
)
def test_a_file_that_does_not_fit_changes_nothing(server, versions, tmp_path, make, message):
    before = server.continued(PROMPT, 8)
    reply = _update(server, make(versions, tmp_path))
    assert reply.status_code == 400 and not reply.json()["success"]
    told = reply.json()["message"]
    assert message in told and told.endswith("The weights are as they were."), told
    assert server.continued(PROMPT, 8) == before


def test_other_formats_are_refused(server, versions):
    reply = _update(server, versions["numbers"].path, load_format="safetensors")
    assert reply.status_code == 400 and "Leave out load_format" in reply.json()["message"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_old_file_comes_back_if_loading_fails(cpu_engine, versions, tmp_path, ranks):
    path = _file_of_nan(versions, tmp_path)
    options = {"dtype": "float32", "tp_size": ranks, "environment": {"NEW_FILE": str(path)}}
    first = versions["first"]
    with cpu_engine.load(first.path, probe="probes:unchecked_update", **options) as model:
        assert len(model.probes) == ranks
        for success, message in model.probes:
            assert not success and message.startswith(f"{path}: "), message
            assert message.endswith("The old weights were loaded again, and are served.")
        found = model.score(PROMPT, 4).logprobs[: len(PROMPT) - 1]
    assert np.abs(np.subtract(found, first.logprobs())).mean() <= 1e-4


def test_without_a_way_back_requests_are_told(cpu_engine, versions, tmp_path):
    path = _file_of_nan(versions, tmp_path)
    first = versions["first"]
    options = {"dtype": "float32", "environment": {"NEW_FILE": str(path)}}
    with cpu_engine.load(first.path, probe="probes:lost_and_found", **options) as model:
        [((success, message), lost, found, nothing)] = model.probes
        assert not success and message.endswith(lost) and "no weights to compute with" in lost
        assert found[0] and nothing is None
        logprobs = model.score(PROMPT, 4).logprobs[: len(PROMPT) - 1]
    assert np.abs(np.subtract(logprobs, first.logprobs())).mean() <= 1e-4


WEIGHTS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.mlp.gate.weight": "blk.0.ffn_gate_inp.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
    "model.layers.1.self_attn.v_proj.weight": "blk.1.attn_v.weight",
    "model.layers.1.self_attn.v_proj.bias": "blk.1.attn_v.bias",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.1.mlp.experts.3.gate_proj.weight": "blk.1.ffn_gate_exps.weight/3",
    "model.layers.1.mlp.experts.0.up_proj.weight": "blk.1.ffn_up_exps.weight/0",
    "model.layers.0.mlp.experts.2.down_proj.weight": "blk.0.ffn_down_exps.weight/2",
    "model.layers.0.mlp.shared_expert.up_proj.weight": "blk.0.ffn_up_shexp.weight",
}


def _expected(model: Model, name: str, rows: int) -> np.ndarray:
    tensor, _, expert = WEIGHTS[name].partition("/")
    weight = model.weights[tensor]
    return (weight[int(expert)] if expert else weight)[:rows]


def _check_weights(server: Server, model: Model, tolerance: float) -> None:
    for name in WEIGHTS:
        found = np.array(_post(server, "get_weights_by_name", name=name, truncate_size=7).json())
        expected = _expected(model, name, 7)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), name


def test_weights_by_name(server, versions):
    for version in ("other-types", "first"):
        assert _update(server, versions[version].path).status_code == 200
        _check_weights(server, versions[version], 0)
    for name in ("model.layers.9.self_attn.q_proj.weight", "nonsense", "lm_head.bias", ""):
        assert _post(server, "get_weights_by_name", name=name).status_code == 400
    assert server.mean_error(PROMPT, versions["first"].logprobs()) <= 1e-4


def test_tensors_are_refused(server, versions):
    begun = _post(server, "begin_weight_update")
    assert begun.status_code == 400 and "/update_weights_from_disk" in begun.text
    group = {
        "master_address": "127.0.0.1",
        "master_port": 1,
        "rank_offset": 1,
        "world_size": 2,
        "group_name": "g",
    }
    refused = _post(server, "init_weights_update_group", **group, backend="gloo")
    assert refused.status_code == 400 and "/update_weights_from_disk" in refused.text
    tensors = {"serialized_named_tensors": ["AA=="], "flush_cache": False}
    assert _post(server, "update_weights_from_tensor", **tensors).status_code == 400
    assert server.mean_error(PROMPT, versions["first"].logprobs()) <= 1e-4


def test_memory_is_not_released(server, versions):
    for route in ("release_memory_occupation", "resume_memory_occupation"):
        reply = _post(server, route)
        assert reply.status_code == 400 and "--enable-memory-saver" in reply.text
    assert server.mean_error(PROMPT, versions["first"].logprobs()) <= 1e-4


def test_checksums_follow_the_weights(server, versions):
    def checksum() -> str:
        reply = _post(server, "weights_checker", action="checksum")
        assert reply.status_code == 200, reply.text
        return reply.json()["per_engine_checksum"]

    first = checksum()
    assert _update(server, versions["same-types"].path).status_code == 200
    assert checksum() != first
    assert _update(server, versions["first"].path).status_code == 200
    assert checksum() == first


#: Models that keep what they derive from weights, that load them in ways of their own, or whose
#: experts have biases.
ARCHITECTURES = ("deepseek-v3", "gemma3", "gpt-oss", "llama4", "phi3")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(cpu_engine, tiny_model, tmp_path, name):
    old = write_tiny(tmp_path, TINY[name], seed=1)
    new = tiny_model(name)
    options = {"dtype": "float32", "environment": {"NEW_FILE": str(new.path)}}
    with cpu_engine.load(old.path, probe="probes:update", **options) as model:
        assert model.probes == [(True, "Succeeded to update model weights.")]
        tokens, logprobs = model.score(PROMPT, 8)
    assert np.abs(np.subtract(logprobs, new.logprobs(tokens))).mean() <= 1e-4


def test_two_ranks(zygote, versions, log):
    arguments = (*CPU, "--dtype", "float32", "--tp-size", "2")
    environment = cpu_environment(2)
    first = versions["first"].path
    with zygote.serve(first, log, *arguments, environment=environment) as server:
        _check_updates(server, versions, 1e-4)
        for name in WEIGHTS:
            found = _post(server, "get_weights_by_name", name=name, truncate_size=7).json()
            assert np.array_equal(np.array(found), _expected(versions["first"], name, 7)), name
        # A file that does not fit is refused by both ranks, and neither waits for the other.
        assert _update(server, DATA / "qwen3-dense-Q4_K_M.gguf").status_code == 400
        _check_answers(server, versions["first"], 1e-4)


def test_weights_held_as_numbers(zygote, versions, log):
    dense = ("--model-loader-extra-config", '{"weights": "dense"}')
    with zygote.serve(versions["first"].path, log, *CPU, "--dtype", "float32", *dense) as server:
        _check_updates(server, versions, 1e-4)


def test_two_ranks_on_the_simulated_npu(npu_zygote, versions, log):
    arguments = (*NPU_ONE, "--dtype", "float16", "--tp-size", "2")
    with npu_zygote.serve(versions["first"].path, log, *arguments) as server:
        _check_updates(server, versions, 0.01)
        _check_weights(server, versions["first"], 1e-2)
        before = server.continued(PROMPT, 8)
        assert _update(server, DATA / "qwen3-dense-Q4_K_M.gguf").status_code == 400
        assert server.continued(PROMPT, 8) == before
