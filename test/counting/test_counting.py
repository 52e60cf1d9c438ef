"""The makers of the models that can count: problems, training, export."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ascend_gguf import load_tokenizer
from counting import reference, train
from counting.export import export
from counting.problems import Problem, problems
from counting.vocabulary import END_OF_TURN, SIZE, prompt, tokenizer
from random_model import read_model


def test_answers_are_right():
    for problem in islice(problems(seed=11, held_out=False), 2000):
        for left, result in problem.sums:
            assert eval(left.rstrip("=")) == int(result)
            assert set(re.findall(r"\d+", left)) <= set(re.findall(r"\d+", str(problem)))
        assert problem.answer.endswith(f"\n#### {problem.sums[-1][1]}")


def test_held_out_problems_are_never_trained_on():
    asked = [Problem(*problem) for problem in reference.PROBLEMS]
    assert len(set(asked)) == 300
    assert all(problem.held_out for problem in asked)
    assert not any(problem.held_out for problem in islice(problems(11, held_out=False), 2000))


def test_what_is_learnt_is_the_answer():
    problem = next(problems(seed=11, held_out=False))
    ids, targets = train.batch_of([train.dialogue(problem)])
    learnt = targets[0] >= 0
    assert tokenizer().decode(targets[0][learnt].tolist()) == problem.answer
    assert targets[0][learnt][-1] == END_OF_TURN
    assert tokenizer().decode(ids[0].tolist(), skip_special_tokens=False) == (
        prompt(problem.question) + problem.answer
    )


@pytest.mark.parametrize("kind", train.KINDS)
def test_a_few_steps_of_training_and_export(tmp_path: Path, kind, capsys):
    train.train("dense", tmp_path / "start", steps=1, decay=0)
    train.train(kind, tmp_path / "hf", steps=2, decay=0.5, start=tmp_path / "start")
    assert f"{kind} step 2: loss " in capsys.readouterr().out
    export(tmp_path / "hf", tmp_path / "model.gguf")

    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    written = read_model(tmp_path / "model.gguf").in_transformers().state_dict()
    for name, weight in trained.state_dict().items():
        # In the file matrices are float16.
        torch.testing.assert_close(written[name], weight, rtol=1e-3, atol=1e-7)

    text = prompt("How many, Wei? 42!") + "é"
    found = load_tokenizer(tmp_path / "model.gguf")
    assert found.encode(text) == tokenizer().encode(text).ids
    assert len(found) == SIZE
    message = [{"role": "user", "content": "How many, Wei? 42!"}]
    rendered = found.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert rendered + "é" == text
