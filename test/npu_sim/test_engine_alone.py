"""The released engine, without this project's patch, gives its known results on the simulated NPU.

This tests the simulation.  Dense models come out right; MoE models come out wrong by what the
engine does wrong with them (on any NPU): it does not renormalise the weights of the chosen experts,
and with two ranks its down projection is cut along the output, gathered, and added up once more,
which partly makes up for the first.  A simulation that hid either, or added an error of its own,
would show here.  Graphs are on, as they are by default.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from needs import shared
from serving import Server

pytestmark = pytest.mark.npu_sim(own_process=True)

DATA = Path(__file__).parents[1] / "data"
NPU = ("--device", "npu", "--quantization", "gguf", "--cuda-graph-max-bs-decode", "4")


def reference(name: str) -> dict:
    return json.loads(model(name).with_suffix(".ref.json").read_text())


def error(server: Server, name: str) -> float:
    """Mean absolute difference of the prompt's log-probabilities from the reference."""
    ref = reference(name)
    return server.mean_error(ref["input_ids"], ref["token_logprobs"])


def decoding_error(server: Server, name: str, tokens: int = 24) -> float:
    """Largest difference of log-probabilities: of tokens as they are generated, and as a prompt.

    The first come from graph replays, token by token, the second from one prefill without graphs.
    """
    ids = reference(name)["input_ids"][:40]
    options = {"max_new_tokens": tokens, "ignore_eos": True}
    answer = server.generate(ids, options, return_logprob=True)
    found = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    again = server.prompt_logprobs(ids + answer["output_ids"])[len(ids) - 1 :]
    return max(abs(a - b) for a, b in zip(found, again, strict=True))


def model(name: str) -> Path:
    own = DATA / f"{name}.gguf"
    return own if own.exists() else shared("models", own.name)


def test_dense(engine_alone, log):
    name = "qwen2-dense-Q4_K_M"
    with engine_alone.serve(model(name), log, *NPU) as server:
        assert error(server, name) < 0.005
        assert decoding_error(server, name) < 0.02
        for prompt in (reference(name)["input_ids"][:9], [1, 2, 3]):
            server.generate(prompt, {"max_new_tokens": 40, "ignore_eos": True})
    assert "npu graph: True" in log.read_text(errors="replace")


def test_dense_with_a_head_size_of_its_own(engine_alone, log, tmp_path):
    # The engine reads the head size from config.json only.
    name = "qwen3-dense-Q4_K_M"
    copy = shutil.copy(model(name), tmp_path)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256,
        "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with engine_alone.serve(copy, log, *NPU) as server:
        assert error(server, name) < 0.005


@pytest.mark.parametrize(("ranks", "low", "high"), [(1, 0.30, 0.33), (2, 0.12, 0.15)])
def test_moe_is_wrong_as_known(engine_alone, log, tmp_path, ranks, low, high):
    name = "qwen3-moe-Q8_0"
    record = tmp_path / "record.jsonl"
    arguments = (*NPU, "--tp-size", str(ranks))
    environment = {"NPU_SIM_RECORD": str(record)}
    with engine_alone.serve(model(name), log, *arguments, environment=environment) as server:
        assert low < error(server, name) < high
        assert decoding_error(server, name) < 0.1
    steps = [json.loads(line) for line in record.read_text().splitlines()]
    assert {step["device"] for step in steps} == set(range(ranks))
    decode = [step for step in steps if step["mode"] == "DECODE"][-1]
    assert decode["graph_replays"] == 1 and not decode["copies"]
    # Two layers: a grouped product for gate and up, one for down.
    assert decode["operators"]["aclnnGroupedMatmulWeightNz"] == 4
    # Of two ranks: the embedding's, the attention's of each layer, the gathered logits, and three
    # of each MoE layer, where one would do.
    names = [name for name, _ in decode["collectives"]]
    assert len(names) == (0 if ranks == 1 else 1 + 2 + 1 + 3 * 2)


def test_a_row_that_is_not_whole_blocks_is_refused_by_the_engine(engine_alone, log):
    # Two ranks halve 256 columns of Q4_K, whose blocks hold 256.
    arguments = (*NPU, "--tp-size", "2")
    with pytest.raises(AssertionError, match="not a multiple of Q._K type size"):
        with engine_alone.serve(model("qwen3-moe-Q4_K_M"), log, *arguments):
            pass
