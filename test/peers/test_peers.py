"""Files of llama.cpp's own converter, served and compared with transformers.

A chosen part runs with the other tests, of quantized files; ``make peers`` runs all of it, and
prints the errors.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from ascend_gguf import GGUFError, load_config, load_tokenizer
from ascend_gguf.architectures import ARCHITECTURES
from engine_process import EngineProcess
from fetch import llama_cpp
from hf_models import TINY, Written
from needs import fetched
from peers.convert import RERANKER_WORDS
from peers.published import QWEN_DRAFTS, renamed
from peers.table import CHOSEN, CROSS_ENCODERS, DRAFTING, ENCODERS, EVERY, PEERS, RERANKERS
from random_model import PROMPT
from rewrite import rewrite
from serving import CPU, typical_error

#: In float32 nothing is rounded on the way, neither by the file nor by the engine.
LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.03}

#: Gemma 2 and others are refused in float16, which these small models do not leave.
ANY_DTYPE = {"model_loader_extra_config": '{"float16": "allow"}'}

#: Tokens of an answer, which decode computes.
ANSWER = 8

ALL = bool(os.environ.get("ALL_PEERS"))
NAMES = list(PEERS if ALL else CHOSEN)
#: Of the files.
TYPES = ("F32", "Q8_0") if ALL else ("Q8_0",)

CHOSEN_ENCODERS = ("bert", "bert-mean", "bge-m3", "embedding-gemma", "llama-embed")
CHOSEN_DRAFTING = ("glm-4.7-flash-drafts", "qwen3.5-moe-drafts")
ENCODER_NAMES = [n for models in ENCODERS.values() for n in models if ALL or n in CHOSEN_ENCODERS]

#: Largest error of a number of an embedding, whose square sum is one.
EMBEDDING_LIMITS = {"cpu": ("float32", 5e-6), "npu": ("float16", 2e-3)}

#: Largest error of the probability of yes.
RERANKER_LIMITS = {"cpu": ("float32", 1e-5), "npu": ("float16", 5e-3)}


@pytest.fixture(scope="session")
def files(request, tmp_path_factory) -> Callable[[str, str], Written]:
    """The models that the chosen tests need, by name and type, made once for all processes."""
    tests = [item for item in request.session.items if item.path == Path(__file__)]
    asking = [test.callspec.params["name"] for test in tests if "files" in test.fixturenames]
    names = sorted(set(asking))
    source = fetched(llama_cpp)
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "peers"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            script = [sys.executable, "-W", "ignore", Path(__file__).with_name("convert.py")]
            command = [*script, source, folder, ",".join(TYPES), *names]
            subprocess.run(command, check=True, capture_output=True)

    def written(name: str, kind: str) -> Written:
        error = folder / name / "error"
        assert not error.exists(), error.read_text()
        return Written(folder / name / f"{kind}.gguf", folder / name / "hf")

    return written


def _check(engine: EngineProcess, model: Written, dtype: str, record: Callable) -> None:
    tokens, found = engine.score(model.path, PROMPT, ANSWER, dtype=dtype, **ANY_DTYPE)
    errors = np.abs(np.subtract(found, model.logprobs(tokens)))
    # Of the prompt and of the answer, which other code computes.
    error = max(typical_error(part, dtype) for part in np.split(errors, [-ANSWER]))
    record("error", (f"{model.path.stem} in {dtype}", error))
    assert error <= LIMITS[dtype]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_on_the_cpu(cpu_engine, files, record_property, name, kind):
    _check(cpu_engine, files(name, kind), "float32", record_property)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if "npu" not in PEERS[name].refused])
def test_on_the_simulated_npu(npu_engine, files, record_property, name, kind):
    _check(npu_engine, files(name, kind), PEERS[name].npu_dtype, record_property)


def _drafts(folder: Path, tokens: list[int]) -> list[int]:
    """What the last layer of the checkpoint says: of each token but the first two, its guess."""
    config = AutoConfig.from_pretrained(folder / "hf")
    prefix = f"model.layers.{config.num_hidden_layers - 1}."
    names = {re.escape(of_qwen): prefix + name for of_qwen, name in QWEN_DRAFTS.items()}
    tensors = renamed(load_file(folder / "published/model.safetensors"), names)
    config.save_pretrained(folder / "drafts")
    save_file(tensors, folder / "drafts/model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(
        folder / "drafts", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    *layers, layer = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        norm = deepcopy(model.model.norm)
        norm.weight.data = tensors[f"{prefix}{name}.weight"]
        return norm(x)

    with torch.no_grad():
        state = model.model(torch.tensor([tokens])).last_hidden_state[:, :-1]
        following = model.model.embed_tokens(torch.tensor([tokens[1:]]))
        joined = torch.cat((normed(following, "enorm"), normed(state, "hnorm")), -1)
        places = torch.arange(len(tokens) - 1)[None]
        state = layer(
            joined @ tensors[f"{prefix}eh_proj.weight"].T,
            attention_mask=torch.full((len(tokens) - 1,) * 2, -torch.inf).triu(1)[None, None],
            position_ids=places,
            position_embeddings=model.model.rotary_emb(joined, places),
        )
        state = state[0] if isinstance(state, tuple) else state
        return model.lm_head(normed(state, "shared_head.norm"))[0, :-1].argmax(-1).tolist()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", DRAFTING if ALL else CHOSEN_DRAFTING)
def test_drafts(npu_engine, files, name, kind):
    """Of one token a step: the answer is the same, in as many steps as transformers' guesses say.

    Of three tokens, with graphs, on one rank and on two: the same answer, in no more steps.
    """
    model, new = files(name, kind), 24
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    asked = {"input_ids": [PROMPT], "sampling_params": sampling}
    drafts = {"dtype": "bfloat16", "speculative_algorithm": "NEXTN"}
    one = {"speculative_num_steps": 1, "speculative_eagle_topk": 1}
    one |= {"speculative_num_draft_tokens": 2, "disable_cuda_graph": True}
    with npu_engine.load(model.path, dtype="bfloat16") as served:
        answer = served.generate(**asked)[0]["output_ids"]
    guesses = _drafts(model.path.parent, [*PROMPT, *answer])[len(PROMPT) - 1 :]
    steps, known = 0, 1
    while known < new:
        known += 1 + (guesses[known - 1] == answer[known])
        steps += 1
    for options in (one, {}, {"tp_size": 2}):
        with npu_engine.load(model.path, **drafts, **options) as served:
            (found,) = served.generate(**asked)
        assert found["output_ids"] == answer
        took = found["meta_info"]["spec_verify_ct"]
        print(options, took, "steps")
        if options is one:
            # A guess whose logits nearly tie may be another in bfloat16.
            assert abs(took - steps) <= 1 and took < new - 1
            steps = took
        else:
            assert took <= steps


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("device", RERANKER_LIMITS)
def test_reranker(request, files, device, name, kind):
    model, engine = files(name, kind), request.getfixturevalue(f"{device}_engine")
    dtype, limit = RERANKER_LIMITS[device]
    prompts = [PROMPT, PROMPT[:20]]
    with engine.load(model.path, dtype=dtype) as served:
        found = torch.tensor(served.embed(prompts), dtype=torch.float64).softmax(-1)[:, 0]
    rows = [RERANKER_WORDS["yes"], RERANKER_WORDS["no"]]
    for prompt, score in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model.reference(torch.tensor([prompt])).logits[0, -1, rows]
        error = abs(score - logits.double().softmax(-1)[0]).item()
        print(f"error of the probability of yes in {dtype}: {error:.1e}")
        assert error <= limit


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CROSS_ENCODERS)
@pytest.mark.parametrize("device", RERANKER_LIMITS)
def test_cross_encoder(request, files, device, name, kind):
    """On one rank and on two."""
    model, engine = files(name, kind), request.getfixturevalue(f"{device}_engine")
    dtype, limit = RERANKER_LIMITS[device]
    reference = AutoModelForSequenceClassification.from_pretrained(model.hf, dtype=torch.float32)
    prompts = [PROMPT, PROMPT[:20], PROMPT[:1]]
    with torch.no_grad():
        expected = [reference(torch.tensor([prompt])).logits.item() for prompt in prompts]
    for ranks in (1, 2):
        with engine.load(model.path, dtype=dtype, tp_size=ranks) as served:
            errors = np.abs(np.subtract(served.embed(prompts), expected))
        print(f"errors of scores in {dtype} on {ranks} ranks: {errors}")
        assert errors.max() <= limit


def _embedding(model: torch.nn.Module, prompt: list[int], name: str, hf: Path) -> np.ndarray:
    mask = {}
    if name == "llama-embed":  # nothing is masked
        mask = {"attention_mask": torch.zeros(1, 1, len(prompt), len(prompt))}
    with torch.no_grad():
        hidden = model(torch.tensor([prompt]), **mask).last_hidden_state[0]
    pooled = hidden.mean(0) if EVERY[name].pooling == "mean_tokens" else hidden[0]
    for layer in ("2_Dense", "3_Dense")[: 2 if EVERY[name].dense else 0]:
        pooled = load_file(hf / layer / "model.safetensors")["linear.weight"] @ pooled
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ENCODER_NAMES)
@pytest.mark.parametrize("device", EMBEDDING_LIMITS)
def test_embeddings(request, files, device, name, kind):
    """On one rank and on two."""
    model, engine = files(name, kind), request.getfixturevalue(f"{device}_engine")
    dtype, limit = EMBEDDING_LIMITS[device]
    reference = AutoModel.from_pretrained(model.hf, dtype=torch.float32).eval()
    prompts = [PROMPT, PROMPT[:20], PROMPT[:1]]
    for ranks in (1, 2):
        with engine.load(model.path, dtype=dtype, tp_size=ranks, **ANY_DTYPE) as served:
            embeddings = served.embed(prompts)
        for prompt, found in zip(prompts, embeddings, strict=True):
            expected = _embedding(reference, prompt, name, model.hf)
            error = np.abs(expected - found).max()
            print(f"largest error of an embedding in {dtype} on {ranks} ranks: {error:.1e}")
            assert error <= limit


#: Of a vocabulary as conversion writes BERT's: what begins a word is marked, and the rest is not.
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581hello", "\u2581wor", "ld", "\u2581!", "s"]


@pytest.mark.parametrize("name", ["bert"])
def test_embedding_of_a_text(zygote, log, files, tmp_path, name):
    """Without an option, by the tokenizer of the file."""
    model, path = files(name, "Q8_0"), tmp_path / "model.gguf"
    tokens = _WORDS + [f"\u2581{i}" for i in range(512 - len(_WORDS))]
    found = {"model": "bert", "tokens": tokens, "token_type": [3] * 4 + [1] * (512 - 4)}
    found |= {"merges": None, "pre": None, "bos_token_id": 2, "eos_token_id": None}
    found |= {"seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0}
    rewrite(model.path, path, metadata={f"tokenizer.ggml.{k}": v for k, v in found.items()})
    body = {"model": "default", "input": ["Hello worlds!", "hello"]}
    with zygote.serve(path, log, *CPU, "--dtype", "float32") as server:
        answer = requests.post(f"{server.url}/v1/embeddings", json=body, timeout=60).json()
    reference = AutoModel.from_pretrained(model.hf, dtype=torch.float32).eval()
    for prompt, given in zip(([2, 4, 5, 6, 8, 7, 3], [2, 4, 3]), answer["data"], strict=True):
        expected = _embedding(reference, prompt, name, model.hf)
        assert np.abs(expected - given["embedding"]).max() <= EMBEDDING_LIMITS["cpu"][1]


@pytest.mark.parametrize("name", ["embedding-gemma"])
def test_embedding_of_a_text_by_gemma(zygote, log, files, name):
    """The engine adds the token that ends a text."""
    model = files(name, "Q8_0")
    texts = ["Hello worlds!", "the quick brown fox jumps over the lazy dog " * 4]
    tokenizer = load_tokenizer(model.path)
    reference = AutoModel.from_pretrained(model.hf, dtype=torch.float32).eval()
    with zygote.serve(model.path, log, *CPU, "--dtype", "float32") as server:
        body = {"model": "default", "input": texts}
        answer = requests.post(f"{server.url}/v1/embeddings", json=body, timeout=60).json()
    for text, given in zip(texts, answer["data"], strict=True):
        prompt = [*tokenizer.encode(text), tokenizer.eos_token_id]
        expected = _embedding(reference, prompt, name, model.hf)
        assert np.abs(expected - given["embedding"]).max() <= EMBEDDING_LIMITS["cpu"][1]


#: Of XLM-RoBERTa's kind, with the score of each piece.
_PIECES = {"<s>": 0, "<pad>": 0, "</s>": 0, "<unk>": 0, "\u2581hello": -2, "\u2581wor": -3}
_PIECES |= {"ld": -3, "\u2581": -4, "s": -4, "hello": -9}


def _as_xlm_roberta(source: Path, target: Path) -> None:
    pieces = _PIECES | {f"\u2581{i}": -20 for i in range(512 - len(_PIECES))}
    found = {"model": "t5", "pre": None, "merges": None, "tokens": list(pieces)}
    found |= {"scores": [float(score) for score in pieces.values()]}
    found |= {"token_type": [3, 3, 3, 2] + [1] * (512 - 4), "remove_extra_whitespaces": True}
    found |= {"bos_token_id": 0, "eos_token_id": 2, "seperator_token_id": 2}
    found |= {"unknown_token_id": 3, "padding_token_id": 1, "add_bos_token": True}
    keys = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    rewrite(source, target, metadata=keys)


@pytest.mark.parametrize("name", ["bge-reranker"])
def test_rank_by_a_cross_encoder(zygote, log, files, tmp_path, name):
    """Without an option, by the tokenizer of the file: of pieces by their scores."""
    model, path = files(name, "Q8_0"), tmp_path / "model.gguf"
    _as_xlm_roberta(model.path, path)
    body = {"query": "hello  worlds", "documents": ["hello", " hello!\nworld hello"]}
    with zygote.serve(path, log, *CPU, "--dtype", "float32") as server:
        answers = requests.post(f"{server.url}/v1/rerank", json=body, timeout=60).json()
    reference = AutoModelForSequenceClassification.from_pretrained(model.hf, dtype=torch.float32)
    # Without a table of characters a newline is no space: "!", it and "wor" are one unknown.
    documents = [[4], [4, 3, 6, 4]]
    for answer in answers:
        tokens = [0, 4, 5, 6, 8, 2, 2, *documents[answer["index"]], 2]
        with torch.no_grad():
            score = reference(torch.tensor([tokens])).logits.item()
        assert abs(answer["score"] - score) <= RERANKER_LIMITS["cpu"][1]
    assert len(answers) == 2


@pytest.mark.parametrize("name", ["bge-reranker"])
@pytest.mark.parametrize(
    ("lacking", "says"), [("cls.", "pooler.dense"), ("token_types.", "DistilBERT's head")]
)
def test_heads_that_conversion_changes_are_refused(files, tmp_path, name, lacking, says):
    def without(tensor, data):
        return [] if tensor.startswith(lacking) and "output" not in tensor else [(tensor, data)]

    path = tmp_path / "model.gguf"
    rewrite(files(name, "Q8_0").path, path, without)
    with pytest.raises(GGUFError, match=says):
        load_config(path)


def test_every_architecture_has_a_peer():
    """But for those that there is nothing of to convert, or no converter that works."""
    found = {TINY[name].arch for name in PEERS.keys() & TINY.keys()}
    found |= PEERS.keys() | ENCODERS.keys()
    missing = {architecture.name for architecture in ARCHITECTURES} - found
    assert missing <= {"bailingmoe2", "baichuan"} | {t.arch for t in TINY.values() if t.refused}
