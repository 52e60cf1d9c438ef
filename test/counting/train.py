"""Trains a small Qwen3 to solve arithmetic word problems: ``python -m counting.train dense DIR``.

On one core of a processor with bfloat16 instructions this takes about 25 minutes a model.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from counting.problems import Problem, problems
from counting.vocabulary import END_OF_TURN, PADDING, SIZE, prompt, tokenizer

_SIZES = {
    "vocab_size": SIZE,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,  # about 256 ** -0.5: small models learn sooner
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "pad_token_id": PADDING,
    "bos_token_id": PADDING,
    "eos_token_id": END_OF_TURN,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.01,
}
KINDS = {
    "dense": ("qwen3", _SIZES),
    "moe": ("qwen3_moe", _SIZES | _EXPERTS),
}

_BATCH = 32
#: Rows of bare sums in a batch, until the learning rate falls, and sums in each.
_DRILLS, _SUMS = 8, 7
_IGNORED = -100  # cross_entropy's mark of positions that do not count
_WARM_UP = 200
_PEAK = 2e-3

#: Pieces of text, each with whether it is to be learnt.
Row = list[tuple[str, bool]]


def dialogue(problem: Problem) -> Row:
    return [(prompt(problem.question), False), (f"{problem.answer}<|im_end|>", True)]


def _drill(several: list[Problem]) -> Row:
    """Sums one after the other, which teach arithmetic in fewer tokens than problems do."""
    sums = [pair for problem in several for pair in problem.sums][:_SUMS]
    return [piece for left, right in sums for piece in ((left, False), (f"{right}\n", True))]


def batch_of(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the next tokens to learn, int64 ``[rows, longest]``."""
    pieces = [[(tokenizer().encode(text).ids, learnt) for text, learnt in row] for row in rows]
    longest = max(sum(len(ids) for ids, _ in row) for row in pieces) - 1
    inputs = torch.full((len(rows), longest), PADDING)
    targets = torch.full((len(rows), longest), _IGNORED)
    for number, row in enumerate(pieces):
        ids = [token for ids, _ in row for token in ids]
        wanted = [token if learnt else _IGNORED for ids, learnt in row for token in ids]
        inputs[number, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[number, : len(ids) - 1] = torch.tensor(wanted[1:])
    return inputs, targets


def _batches(seed: int, with_drills: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Problems of about the same length together, in random order; drills in the first batches."""
    source, rng = problems(seed, held_out=False), random.Random(seed)
    for number in count():
        drills = _DRILLS if number * 8 < with_drills else 0
        each = _BATCH - drills
        several = sorted(islice(source, 8 * each), key=lambda problem: len(problem.question))
        batches = [several[i : i + each] for i in range(0, len(several), each)]
        rng.shuffle(batches)
        for batch in batches:
            rows = [_drill(list(islice(source, _SUMS))) for _ in range(drills)]
            yield batch_of([*map(dialogue, batch), *rows])


@torch.no_grad()
def accuracy(model: PreTrainedModel, questions: int = 300) -> float:
    """Share of held-out problems whose whole answer is the most probable one, token by token."""
    solved = 0
    source = problems(seed=1, held_out=True)
    for _ in range(0, questions, 50):
        ids, targets = batch_of(list(map(dialogue, islice(source, 50))))
        with torch.autocast("cpu", torch.bfloat16):
            found = model(ids).logits.argmax(-1)
        solved += int(((found == targets) | (targets == _IGNORED)).all(1).sum())
    return solved / questions


def _new(kind: str, start: Path | None) -> PreTrainedModel:
    """A model to train: with random weights, or those of the dense one in ``start``."""
    model_type, sizes = KINDS[kind]
    # Plain operations are the fastest for sequences as short as these.
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **sizes), attn_implementation="eager"
    )
    if kind == "moe":
        model.set_experts_implementation("eager")
    if start:
        weights = AutoModelForCausalLM.from_pretrained(start).state_dict()
        if kind == "moe":
            weights = _upcycled(weights)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and all("mlp.gate" in name for name in missing), missing
    return model


def _upcycled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each expert a part of the dense feed-forward layer, some parts twice; routers stay random.

    Source: sparse upcycling, arXiv:2212.05055.
    """
    experts, width = _EXPERTS["num_experts"], _EXPERTS["moe_intermediate_size"]
    parts = _SIZES["intermediate_size"] // width

    def cut(name: str, dim: int) -> torch.Tensor:
        pieces = weights.pop(name).split(width, dim)
        return torch.stack([pieces[expert % parts] for expert in range(experts)])

    for layer in range(_SIZES["num_hidden_layers"]):
        mlp = f"model.layers.{layer}.mlp"
        gate, up = (cut(f"{mlp}.{name}_proj.weight", 0) for name in ("gate", "up"))
        weights[f"{mlp}.experts.gate_up_proj"] = torch.cat([gate, up], 1)
        # The chosen experts' weights sum to one, the parts to the whole.
        weights[f"{mlp}.experts.down_proj"] = parts * cut(f"{mlp}.down_proj.weight", 1)
    return weights


def train(
    kind: str, folder: Path, steps: int, decay: float, start: Path | None = None, seed: int = 0
) -> None:
    """Write a checkpoint to ``folder``, now and then and at the end.

    Args:
        decay: share of the steps over which the learning rate falls to zero.
        start: a checkpoint of a dense model to begin with.
    """
    torch.manual_seed(seed)
    model = _new(kind, start)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    began = time.monotonic()
    falls = steps * decay
    batches = _batches(seed + 2, int(steps - falls))
    for step, (ids, targets) in enumerate(islice(batches, steps)):
        rate = _PEAK * min(1.0, (step + 1) / _WARM_UP)
        for group in optimizer.param_groups:
            group["lr"] = min(rate, _PEAK * (steps - step) / falls) if falls else rate
        with torch.autocast("cpu", torch.bfloat16):
            output = model(ids)
        loss = cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())
        if kind == "moe":
            loss = loss + output.aux_loss * _EXPERTS["router_aux_loss_coef"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            print(
                f"{kind} step {step + 1}: loss {loss.item():.4f}, held-out {accuracy(model):.3f}, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="counting.train", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000, help=f"of {_BATCH} rows each")
    parser.add_argument("--decay", type=float, default=0.5, help="share of steps")
    parser.add_argument("--start", type=Path, help="a dense checkpoint to begin with")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    torch.set_num_threads(1)
    train(**vars(options))


if __name__ == "__main__":
    main()
