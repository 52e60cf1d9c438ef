"""How a served counting model differs from its original in float32.

``test/data/counting/KIND-F16.npz`` holds what transformers gives for the model in F16:

=========== ============================== =====================================================
right       bool ``[problems]``            whether its greedy answer is right
logprobs    float16 ``[tokens, 512]``      log p of every token at each place of the right answers
                                           to the first :data:`COMPARED` problems, one answer
                                           after the other
=========== ============================== =====================================================
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

import gsm8k
from ascend_gguf import load_tokenizer
from serving import Server

DATA = Path(__file__).parents[1] / "data" / "counting"

#: 300 problems that the models were not trained on.
PROBLEMS = gsm8k.problems(DATA / "problems.jsonl")

#: Problems at whose answers distributions are compared.
COMPARED = 10

#: More than the longest answer has.
MOST_TOKENS = 48

#: Tokens of the vocabulary.
SIZE = 512


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    """Both models have the same: byte-level BPE, each digit a token."""
    return load_tokenizer(DATA / "dense-Q8_0.gguf")


def answers() -> list[tuple[list[int], int]]:
    """Token ids of a prompt and its right answer, and where the answer begins; of each compared."""
    whole = []
    for question, answer in PROBLEMS[:COMPARED]:
        message = [{"role": "user", "content": question}]
        prompt = tokenizer().apply_chat_template(
            message, add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer().encode(prompt)
        answered = [*tokenizer().encode(answer), tokenizer().eos_token_id]
        whole.append((asked + answered, len(asked)))
    return whole


def served_distributions(server: Server) -> np.ndarray:
    """The same of a server, through ``/generate``."""
    places = []
    for ids, start in answers():
        options = {"return_logprob": True, "logprob_start_len": start - 1}
        answer = server.generate(ids, {"max_new_tokens": 1}, top_logprobs_num=SIZE, **options)
        # The first is of the token before the answer.
        places += map(row_of, answer["meta_info"]["input_top_logprobs"][1:])
    return np.stack(places)


def row_of(entries: Iterable[Sequence]) -> np.ndarray:
    """log p of every token, float32 ``[vocabulary]``, from ``(log p, token, ...)`` of each."""
    row = np.full(SIZE, -np.inf, np.float32)
    for logprob, token, *_ in entries:
        row[token] = logprob
    return row


def divergence(found: np.ndarray, kind: str) -> float:
    """Mean Kullback-Leibler divergence of distributions from those of the model in F16, in nats."""
    original = _normalized(np.load(DATA / f"{kind}-F16.npz")["logprobs"])
    return (np.exp(original) * (original - _normalized(found))).sum(-1).mean()


def _normalized(logprobs: np.ndarray) -> np.ndarray:
    """Rounding leaves distributions whose sum is a little off one; float64."""
    logprobs = logprobs.astype(np.float64)
    return logprobs - np.log(np.exp(logprobs).sum(-1, keepdims=True))
