"""What a counting model answers by transformers in float32, and how it is compared.

``python -m counting.reference dense-F16.gguf`` writes ``dense-F16.npz``:

=========== ============================== =====================================================
right       bool ``[problems]``            whether its greedy answer is right
logprobs    float16 ``[tokens, 512]``      log p of every token at each place of the right answers
                                           to the first :data:`COMPARED` problems, one answer
                                           after the other
=========== ============================== =====================================================
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import gsm8k
from counting.vocabulary import END_OF_TURN, PADDING, SIZE, prompt, tokenizer
from random_model import read_model
from serving import Server

DATA = Path(__file__).parents[1] / "data" / "counting"

#: 300 problems that the models were not trained on.
PROBLEMS = gsm8k.problems(DATA / "problems.jsonl")

#: Problems at whose answers distributions are compared.
COMPARED = 10

#: More than the longest answer has.
MOST_TOKENS = 48


def answers() -> list[tuple[list[int], int]]:
    """Token ids of a prompt and its right answer, and where the answer begins; of each compared."""
    whole = []
    for question, answer in PROBLEMS[:COMPARED]:
        asked = tokenizer().encode(prompt(question)).ids
        whole.append((asked + tokenizer().encode(answer).ids + [END_OF_TURN], len(asked)))
    return whole


@torch.no_grad()
def distributions(model: torch.nn.Module) -> np.ndarray:
    """log p of every token at each place of the answers, float32 ``[tokens, vocabulary]``."""
    places = []
    for ids, start in answers():
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
        places.append(logits.float().log_softmax(-1).numpy())
    return np.concatenate(places)


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


@torch.no_grad()
def right(model: torch.nn.Module) -> np.ndarray:
    """Whether the greedy answer to each problem is right, bool ``[problems]``."""
    asked = [tokenizer().encode(prompt(question)).ids for question, _ in PROBLEMS]
    longest = max(map(len, asked))
    # Padded on the left, so that all answers begin at one place.
    ids = torch.tensor([[PADDING] * (longest - len(row)) + row for row in asked])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked])
    generated = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=MOST_TOKENS,
        do_sample=False,
        eos_token_id=END_OF_TURN,
        pad_token_id=PADDING,
    )
    texts = tokenizer().decode_batch(generated[:, longest:].tolist())
    return np.array(
        [
            gsm8k.final_number(text) == gsm8k.final_number(problem.answer)
            for text, problem in zip(texts, PROBLEMS, strict=True)
        ]
    )


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        model = read_model(path).in_transformers()
        solved = right(model)
        print(f"{path.name}: {solved.sum()} of {len(solved)}")
        np.savez_compressed(
            path.with_suffix(".npz"),
            right=solved,
            logprobs=distributions(model).astype(np.float16),
        )


if __name__ == "__main__":
    main()
