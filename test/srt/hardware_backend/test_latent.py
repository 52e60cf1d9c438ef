"""Latent attention on the simulated NPU: prompts in chunks, and behind what is cached.

By the engine's call, whose two parts npu_attention_update joins, and by ours for other heads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_models import TINY, Written, write_model
from serving import told, typical_error

LIMITS = {"float16": 0.005, "bfloat16": 0.03}
ANSWER = 6
DRAW = np.random.default_rng(3).integers(3, 500, 900).tolist()
#: Of several chunks and pages.
LONG = DRAW[:420]

DEEPSEEK = TINY["deepseek-v3"]
CASES = {
    "kimi-linear": (TINY["kimi-linear"], "bfloat16"),
    # Neither as many heads as a power of two, nor of the sizes of the engine's call.
    "odd": (
        replace(
            DEEPSEEK,
            sizes=DEEPSEEK.sizes
            | {"num_attention_heads": 6, "num_key_value_heads": 6}
            | {"qk_nope_head_dim": 96, "v_head_dim": 160},
        ),
        "float16",
    ),
}


def _check(model: Written, dtype: str, prompts: list, answers: list[dict], least: int) -> None:
    """All that is told of prompts and answers, which are the last tokens."""
    errors = []
    for prompt, answer in zip(prompts, answers, strict=True):
        found = told(answer)
        expected = model.logprobs(prompt + answer["output_ids"])[-len(found) :]
        errors.append(np.abs(np.subtract(found, expected)))
    assert answers[0]["meta_info"]["cached_tokens"] >= least
    error = typical_error(np.concatenate(errors), dtype)
    print(f"error in {dtype}: {error:.1e}")
    assert error <= LIMITS[dtype]


@pytest.mark.parametrize("case", CASES)
def test_chunks_and_prefixes(npu_engine, tmp_path, case):
    """Also beside prompts without a prefix, and of more requests than a graph has."""
    tiny, dtype = CASES[case]
    model = write_model(tmp_path / case, tiny)
    sampling = {"max_new_tokens": ANSWER, "ignore_eos": True, "temperature": 0}
    with npu_engine.load(model.path, dtype=dtype, chunked_prefill_size=256) as loaded:
        for prompts, start, least in (
            ([LONG], 0, 0),
            ([LONG + DRAW[500:520]], 420, 384),
            ([LONG + DRAW[500:501], DRAW[600:630], LONG[:300] + DRAW[700:701]], 0, 384),
        ):
            starts = [start or len(prompt) - 1 for prompt in prompts] if least else [0]
            answers = loaded.generate(
                input_ids=prompts,
                sampling_params=sampling,
                return_logprob=True,
                logprob_start_len=starts,
            )
            _check(model, dtype, prompts, answers, least)
