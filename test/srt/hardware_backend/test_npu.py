"""Served on the simulated NPU: the same files, the same answers."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from openai import OpenAI

from ascend_gguf.reader import open_gguf
from npu_sim.operators import faults
from random_model import PROMPT, read_model, write_model
from serving import NPU, NPU_ONE
from srt.models.test_accuracy import VARIANTS, check_file

DATA = Path(__file__).parents[2] / "data"
BUNDLED = sorted(path.stem for path in DATA.glob("*.gguf"))

#: Mean absolute error of the log-probabilities of a prompt's tokens.  Packed scales and offsets are
#: of the model's dtype, and types with a scale for 16 weights may be requantized.
LIMITS = {"float16": 0.01, "bfloat16": 0.02}

#: The environment of a device whose products are wrong.
WRONG_DEVICE = {faults.VARIABLE: faults.ANTIQUANT_OFFSET}

#: Random models have no routers whose best logits nearly tie, so bfloat16 can be held to its limit.
IN_BFLOAT16 = ("all-types", "F16", "BF16-experts", "expert-types", "fused-experts", "file-order")
ON_TWO_RANKS = (
    *("all-types", "expert-types", "fused-experts", "qkv-types", "file-order-quantized"),
    *("scaled", "scaled-experts"),
)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", BUNDLED)
def test_quantized_by_llama_cpp(npu_engine, tmp_path, name, ranks, dtype):
    path = DATA / f"{name}.gguf"
    check_file(npu_engine, path, tmp_path, dtype, LIMITS[dtype], tp_size=ranks)


def _check_variant(engine, folder: Path, variant: str, dtype: str, ranks: int = 1) -> None:
    written = write_model(folder / "model.gguf", **VARIANTS[variant])
    with engine.load(written.path, dtype=dtype, tp_size=ranks) as model:
        assert model.mean_error(PROMPT, written.logprobs()) <= LIMITS[dtype]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_files(npu_engine, tmp_path, variant):
    _check_variant(npu_engine, tmp_path, variant, "float16")


@pytest.mark.parametrize("variant", IN_BFLOAT16)
def test_variants_of_files_in_bfloat16(npu_engine, tmp_path, variant):
    _check_variant(npu_engine, tmp_path, variant, "bfloat16")


@pytest.mark.parametrize("variant", ON_TWO_RANKS)
def test_variants_of_files_on_two_ranks(npu_engine, tmp_path, variant):
    _check_variant(npu_engine, tmp_path, variant, "float16", ranks=2)


@pytest.fixture(scope="module")
def server(npu_zygote, tmp_path_factory):
    """A mixture of experts with the engine's defaults: graphs on, prefixes shared."""
    log = tmp_path_factory.mktemp("npu") / "server.log"
    arguments = (*NPU, "--dtype", "float16", "--chunked-prefill-size", "128")
    with npu_zygote.serve(DATA / "qwen3-moe-Q4_K_M.gguf", log, *arguments) as running:
        yield running


def test_chat(server):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        temperature=0,
    )
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].message.content


def _forget(server) -> None:
    """Forget prompts, as soon as no request runs: what is computed in parts rounds differently."""
    deadline = time.monotonic() + 60
    while (reply := requests.post(f"{server.url}/flush_cache", timeout=30)).status_code != 200:
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.2)


def _greedy(server, prompt: list[int], tokens: int = 12) -> list[int]:
    return server.generate(prompt, {"max_new_tokens": tokens, "ignore_eos": True})["output_ids"]


def test_sixteen_at_once_with_a_shared_prefix(server):
    prompts = [[7] * 200 + [100 + i, 200 + i] for i in range(16)]
    one_by_one = [_greedy(server, prompt) for prompt in prompts]
    _forget(server)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda prompt: _greedy(server, prompt), prompts))
    # In half precision a batch may round differently: tokens a rounding apart may swap.
    same = sum(a == b for a, b in zip(one_by_one, together, strict=True))
    assert same >= 14


def test_prompt_longer_than_one_prefill_chunk(npu_zygote, log):
    prompt = [int(t) for t in np.random.default_rng(1).integers(3, 500, 300)]
    model = read_model(DATA / "qwen3-dense-Q4_K_M.gguf")
    arguments = (*NPU_ONE, "--dtype", "float16", "--chunked-prefill-size", "128")
    with npu_zygote.serve(model.path, log, *arguments) as server:
        assert server.mean_error(prompt, model.logprobs(prompt)) <= LIMITS["float16"]


def test_cancelled_requests_leave_the_server_well(server):
    def abandon() -> None:
        body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 1500}, "stream": True}
        with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=60) as reply:
            next(reply.iter_lines())

    _forget(server)
    before = _greedy(server, PROMPT)
    threads = [threading.Thread(target=abandon) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _forget(server)
    assert _greedy(server, PROMPT) == before


def test_graphs_give_what_eager_execution_gives(npu_zygote, log, server):
    arguments = (*NPU, "--dtype", "float16", "--disable-cuda-graph")
    with npu_zygote.serve(DATA / "qwen3-moe-Q4_K_M.gguf", log, *arguments) as eager:
        assert _greedy(eager, PROMPT, 24) == _greedy(server, PROMPT, 24)


@pytest.mark.parametrize("name", [name for name in BUNDLED if "moe" in name])
@pytest.mark.parametrize(("tp", "ep"), [(2, 2), (4, 2), (4, 4)])
def test_experts_are_dealt_among_npus(npu_engine, tmp_path, name, tp, ep):
    """Each rank routes to its own experts; other pairs of token and expert have no row there."""
    path = DATA / f"{name}.gguf"
    log = check_file(
        npu_engine, path, tmp_path, "float16", LIMITS["float16"], tp_size=tp, ep_size=ep
    )
    held = re.findall(r"^[\w ]+, experts +\d+ +([\d,]+) ", log, re.M)
    shares = [int(count.replace(",", "")) for count in held]
    experts = [t for name, t in open_gguf(path).tensors.items() if "_exps." in name]
    # Of every rank, by layouts.
    assert sum(shares) == sum(torch.Size(tensor.shape).numel() for tensor in experts)
    assert max(shares) <= sum(shares) // tp


@pytest.mark.parametrize(("tp", "ep"), [(4, 2), (4, 4)])
def test_dealt_experts_in_graphs_give_what_eager_execution_gives(npu_engine, tmp_path, tp, ep):
    """With one collective a layer of experts in both; no rank reads the experts of another."""
    path = DATA / "qwen3-moe-Q4_K_M.gguf"
    found = {}
    for disable_cuda_graph in (False, True):
        record = tmp_path / f"{disable_cuda_graph}.jsonl"
        with npu_engine.load(
            path,
            environment={"NPU_SIM_RECORD": str(record)},
            probe="expert_reads:expert_bytes",
            dtype="float16",
            tp_size=tp,
            ep_size=ep,
            disable_cuda_graph=disable_cuda_graph,
        ) as model:
            found[disable_cuda_graph] = model.continued([PROMPT], 12)
            _assert_own_experts_read(path, model.probes, tp, ep)
        for step in _decoding(record):
            assert step["graph_replays"] == (not disable_cuda_graph)
            assert not step["weights_transposed"]
            _assert_reductions(step, _reductions_of_experts() if ep < tp else 1)
    assert found[True] == found[False]


def _assert_own_experts_read(path: Path, reads: list[dict[int, int]], tp: int, ep: int) -> None:
    tensors = [t for name, t in open_gguf(path).tensors.items() if "_exps." in name]
    share = tensors[0].shape[0] // ep
    assert len(reads) == tp
    for rank, read in enumerate(reads):
        first = rank // (tp // ep) * share
        assert sorted(read) == list(range(first, first + share))
        # Of columns, what lies between them is read too: blocks hold 256.
        whole = sum(tensor.nbytes for tensor in tensors) // ep
        assert sum(read.values()) == whole if tp == ep else sum(read.values()) < whole


def _decoding(record: Path) -> list[dict]:
    steps = [json.loads(line) for line in record.read_text().splitlines()]
    decoding = [step for step in steps if step["mode"] == "DECODE"]
    assert decoding
    return decoding


def _reductions_of_experts() -> int:
    """Of a layer whose experts are each on several ranks: SGLang 0.5.20 takes two."""
    from sglang.srt.models import qwen3_moe

    return 2 if hasattr(qwen3_moe, "moe_expert_parallel_all_reduce") else 1


def _assert_reductions(step: dict, of_experts: int = 1) -> None:
    """One after attention, and those after the experts."""
    layers = 2
    # The embedding is reduced once, and the logits are gathered once.
    names = [name for name, _ in step["collectives"]]
    assert names == ["HcclAllReduce"] * (1 + (1 + of_experts) * layers) + ["HcclAllGather"]


def test_one_collective_in_a_layer_of_experts(npu_engine, tmp_path):
    record = tmp_path / "record.jsonl"
    npu_engine.score(
        DATA / "qwen3-moe-Q4_K_M.gguf",
        PROMPT,
        4,
        environment={"NPU_SIM_RECORD": str(record)},
        dtype="float16",
        tp_size=2,
        disable_cuda_graph=True,
    )
    for step in _decoding(record):
        _assert_reductions(step)
        # A few bytes of the engine's own, about requests; nothing for layers or weights.
        assert sum(nbytes for _, nbytes in step["copies"].values()) < 64


def test_where_the_device_is_wrong_weights_become_numbers(npu_zygote, log):
    arguments = (*NPU, "--dtype", "float16")
    path = DATA / "qwen3-moe-Q4_K_M.gguf"
    reference = json.loads(path.with_suffix(".ref.json").read_text())
    with npu_zygote.serve(path, log, *arguments, environment=WRONG_DEVICE) as server:
        error = server.mean_error(reference["input_ids"], reference["token_logprobs"])
    assert error <= LIMITS["float16"]
    text = log.read_text()
    for layout in ("int4, rows", "int4, experts"):
        assert f"falling back to dense weights: self-check failed for {layout} " in text
    # What has no offsets is right, and stays packed, as the report says.
    assert re.search(r"^planes, experts ", text, re.M) and not re.search(r"^int4", text, re.M)


def test_where_the_device_refuses_weights_get_the_next_layout(npu_zygote, log):
    arguments = (*NPU_ONE, "--dtype", "float16")
    path = DATA / "qwen3-moe-Q4_K_M.gguf"
    reference = json.loads(path.with_suffix(".ref.json").read_text())
    refused = ("npu_weight_quant_batchmatmul:int4", "npu_grouped_matmul")
    environment = {faults.VARIABLE: ",".join(f"refuse:{operator}" for operator in refused)}
    with npu_zygote.serve(path, log, *arguments, environment=environment) as server:
        error = server.mean_error(reference["input_ids"], reference["token_logprobs"])
    assert error <= LIMITS["float16"]
    text = log.read_text()
    for operator, layout, found in zip(
        refused, ("int4, rows", "int4, experts"), ("int8, rows", "dense"), strict=True
    ):
        line = rf"falling back to {found} weights: self-check failed for {layout} [\dx ]+ in "
        line += rf"float16: RuntimeError: EZ1001: {operator.partition(':')[0]} is refused"
        assert re.search(line, text), text[-3000:]
    assert re.search(r"^int8 ", text, re.M) and not re.search(r"^int4", text, re.M)  # the report


def test_where_the_device_is_wrong_the_engines_operators_choose_experts(npu_engine, tmp_path):
    path = DATA / "qwen3-moe-Q4_K_M.gguf"
    environment = {faults.VARIABLE: faults.TOP_K_RENORM}
    text = check_file(npu_engine, path, tmp_path, "float16", 0.01, environment=environment)
    assert "chosen by two operators: weights differ from torch's (8 experts, 2 for a token)" in text


def test_a_device_that_is_wrong_is_refused_on_demand(npu_zygote, log):
    options = ("--model-loader-extra-config", json.dumps({"on_mismatch": "stop"}))
    path = DATA / "qwen3-dense-Q4_K_M.gguf"
    with (
        pytest.raises(AssertionError, match="the server ended while starting"),
        npu_zygote.serve(path, log, *NPU, *options, environment=WRONG_DEVICE),
    ):
        pass
    text = log.read_text()
    assert f"{path.name}: this device does not multiply with packed weights as it should" in text
    assert "int4 512 x 256 in bfloat16: relative error" in text
    assert 'load with {"weights": "dense"}' in text
