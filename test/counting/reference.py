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
from pathlib import Path

import numpy as np
import torch

import gsm8k
from counting.vocabulary import END_OF_TURN, PADDING, prompt, tokenizer
from random_model import read_model

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
