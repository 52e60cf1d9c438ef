"""Decode steps replayed on the CPU: the same answers, and only where they are the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.plugins import load_plugins

from random_model import PROMPT
from serving import CPU, Server

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    excepthook = sys.excepthook
    load_plugins()
    yield
    sys.excepthook = excepthook


def runner_of(forward: Callable[[ForwardBatch], torch.Tensor]) -> object:
    """A graph runner of a model that is a function."""
    from ascend_gguf.srt.model_executor.cpu_graph_runner import GGUFGraphRunner

    def run(batch: ForwardBatch) -> LogitsProcessorOutput:
        return LogitsProcessorOutput(forward(batch))

    return GGUFGraphRunner(
        SimpleNamespace(
            spec_algorithm=None,
            attn_backend=SimpleNamespace(init_forward_metadata=lambda batch: None),
            req_to_token_pool=None,
            kv_index_translator=SimpleNamespace(bind_runner_slots=lambda batch: None),
            model=SimpleNamespace(forward=lambda ids, positions, batch: run(batch)),
            _prepare_eager_forward_batch=lambda batch: None,
            eager_runner=SimpleNamespace(execute=run),
        )
    )


def batch_of(ids: list[int], **others) -> ForwardBatch:
    ids = torch.tensor(ids)
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=len(ids),
        input_ids=ids,
        positions=ids + 1,
        seq_lens=ids + 2,
        req_pool_indices=torch.arange(len(ids)),
        out_cache_loc=ids,
        seq_lens_sum=int(ids.sum()),
        seq_lens_cpu=ids + 2,
        **({"capture_hidden_mode": CaptureHiddenMode.NULL} | others),
    )


def steps(runner: object, *batches: ForwardBatch) -> list[torch.Tensor | None]:
    """What the runner makes of batches; None of one that it leaves to the engine."""
    return [
        runner.execute(batch).next_token_logits.clone() if runner.can_run_graph(batch) else None
        for batch in batches
    ]


def test_sizes_of_batches_change() -> None:
    calls = []

    def forward(batch: ForwardBatch) -> torch.Tensor:
        calls.append(batch.batch_size)
        return (batch.input_ids * batch.seq_lens).float()[:, None] / batch.positions[:, None]

    runner = runner_of(forward)
    batches = [batch_of(list(range(i, i + 1 + i % 2))) for i in range(20)]
    for batch, result in zip(batches[2:], steps(runner, *batches)[2:], strict=True):
        assert torch.equal(result, forward(batch))
    # Captured, and once more to compare; besides those above.
    assert sorted(calls[:4]) == [1, 1, 2, 2]
    assert len(calls) == 4 + 18
    assert runner.capture_bs == [1, 2]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda batch, count: int(batch.seq_lens.max()), "values to Python"),
        (lambda batch, count: batch.seq_lens_sum + 1, "NoneType"),
        (lambda batch, count: len(count), "a replay gave other numbers"),
    ],
    ids=["a tensor", "a number of the batch", "a number of its own"],
)
def test_a_model_that_needs_more_than_tensors(read: Callable, message: str, caplog) -> None:
    count = []

    def forward(batch: ForwardBatch) -> torch.Tensor:
        count.append(batch)
        return batch.input_ids.float()[:, None] * read(batch, count)

    runner = runner_of(forward)
    batches = [batch_of([5, 8]) for _ in range(6)]
    with caplog.at_level("INFO"):
        results = steps(runner, *batches)
    (line,) = [r.message for r in caplog.records if "decode graph" in r.message]
    assert line.startswith("No CPU decode graph: ") and message in line
    # The step it was noticed in is done all the same, by the engine's runner as are the others.
    assert results[-1] is None
    noticed = max(i for i, result in enumerate(results) if result is not None)
    expected = batches[noticed].input_ids.float()[:, None] * read(batches[noticed], count)
    assert torch.equal(results[noticed], expected)


@pytest.mark.parametrize(
    "others",
    [
        {"input_embeds": torch.zeros(2, 4)},
        {"lora_ids": [None, "adapter"]},
        {"mm_inputs": [object(), None]},
        {"capture_hidden_mode": CaptureHiddenMode.LAST},
        {"spec_info": object()},
        {"tbo_split_seq_index": 1},
    ],
    ids=lambda others: next(iter(others)),
)
def test_batches_with_more_are_the_engines(others: dict) -> None:
    runner = runner_of(lambda batch: batch.input_ids.float()[:, None])
    plain = batch_of([1, 2], lora_ids=[None, None], mm_inputs=[None, None], return_logprob=True)
    assert [result is None for result in steps(runner, plain, plain)] == [True, False]
    assert not runner.can_run_graph(batch_of([1, 2], **others))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from ascend_gguf.srt.model_executor import cpu_graph_runner

    monkeypatch.setattr(cpu_graph_runner, "MOST_BYTES", 1)
    runner = runner_of(lambda batch: batch.input_ids.float()[:, None] * 2)
    one, two = batch_of([1]), batch_of([1, 2])
    assert [result is None for result in steps(runner, one, one, one, two, two, one)] == [
        True, False, False, True, True, False,
    ]  # fmt: skip


#: Requests of several lengths that begin and end at different times, and one that is given up.
REQUESTS = [(PROMPT[i : 3 * i + 8], 5 + 4 * i) for i in range(5)]


def _answers(server: Server) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities."""

    def ask(request: tuple[list[int], int]) -> tuple[list[int], list[float]]:
        sampling = {"max_new_tokens": request[1], "ignore_eos": True}
        answer = server.generate(request[0], sampling, return_logprob=True, rid=str(request[1]))
        pairs = answer["meta_info"]["output_token_logprobs"]
        return [token for _, token, _ in pairs], [value for value, _, _ in pairs]

    def give_up() -> None:
        body = {"input_ids": PROMPT[:9], "rid": "given up"}
        body["sampling_params"] = {"max_new_tokens": 2000, "ignore_eos": True}
        body["stream"] = True
        with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=60) as reply:
            next(reply.iter_lines())
        requests.post(f"{server.url}/abort_request", json={"rid": "given up"}, timeout=60)

    alone = [ask(request) for request in REQUESTS]
    with ThreadPoolExecutor(len(REQUESTS) + 1) as pool:
        lost = pool.submit(give_up)
        together = list(pool.map(ask, REQUESTS))
        lost.result()
    # The second time their prompts are in the cache.
    return alone + together + [ask(request) for request in REQUESTS]


@pytest.mark.parametrize("model", ["qwen3-dense-Q4_K_M", "qwen3-moe-Q4_K_M"])
def test_answers_are_the_same(zygote, tmp_path, model: str) -> None:
    path, both = DATA / f"{model}.gguf", {}
    for name, arguments in (("replayed", []), ("engine", ["--disable-decode-cuda-graph"])):
        log = tmp_path / f"{name}.log"
        with zygote.serve(path, log, *CPU, "--dtype", "bfloat16", *arguments) as server:
            both[name] = _answers(server)
            # Sampled ones have no equal, but must come.
            sampling = {"temperature": 0.8, "top_p": 0.9, "top_k": 20}
            sampling |= {"max_new_tokens": 8, "ignore_eos": True}
            assert server.generate(PROMPT[:8], sampling)["meta_info"]["completion_tokens"] == 8
    # Alone, and again with the prompt in the cache: bit for bit.
    count = len(REQUESTS)
    for some in (slice(count), slice(2 * count, None)):
        assert both["replayed"][some] == both["engine"][some]
    for answer, expected in zip(both["replayed"], both["engine"], strict=True):
        assert len(answer[0]) == len(expected[0])
    assert "CPU decode graph active for batch size 1" in (tmp_path / "replayed.log").read_text()
    assert "decode graph active" not in (tmp_path / "engine.log").read_text()
