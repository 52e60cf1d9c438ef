"""The engine's own features on a GGUF model: ends of turns, tools, structure, embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import requests
from openai import BadRequestError, OpenAI

from ascend_gguf import load_tokenizer
from random_model import PROMPT, read_model
from rewrite import rewrite
from serving import CPU

MODEL = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"

#: id -> token: every one ends a turn, and the file names one of them as its eos.
ENDS = {
    0: "<|endoftext|>",
    2: "<|im_end|>",
    500: "<|eot_id|>",
    501: "<end_of_turn>",
    502: "<|eom_id|>",
    503: "<|my_end|>",  # known by its key alone
}
#: The file says that no answer has it.
NEVER = 6
HELLO = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "ring",
        "description": "Ring the bell",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"loud": {"type": "boolean"}},
            "required": ["loud"],
            "additionalProperties": False,
        },
    },
}


TOOL_TEMPLATE = (
    "{% for tool in tools %}{{ tool.function.name }} {% endfor %}{{ messages[0]['content'] }}: "
)
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"


def _client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)


@pytest.fixture(scope="module")
def client(zygote, tmp_path_factory) -> OpenAI:
    folder = tmp_path_factory.mktemp("features")
    tokens = list(load_tokenizer(MODEL).get_vocab().items())
    texts = [text for text, _ in sorted(tokens, key=lambda token: token[1])]
    for number, text in ENDS.items():
        texts[number] = text
    metadata = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.eos_token_id": 503}
    kinds = gguf.GGUFValueType
    keys = {
        "tokenizer.chat_template.tool_use": (TOOL_TEMPLATE, kinds.STRING),
        "tokenizer.ggml.suppress_tokens": ([NEVER, -1, 600], kinds.ARRAY, kinds.INT32),
    }
    # What some files have beside the text model: it is left out.
    encoder = {"v.patch_embd.weight": np.ones((4, 4), np.float32)}
    path = folder / "model.gguf"
    rewrite(MODEL, path, metadata=metadata, keys=keys, tensors=encoder)
    arguments = ("--tool-call-parser", "qwen25", "--constrained-json-disable-any-whitespace")
    with zygote.serve(folder / "model.gguf", folder / "log", *CPU, *arguments) as server:
        assert "serving the text model alone" in server.log.read_text()
        yield _client(server)


@pytest.mark.parametrize("token", ENDS)
def test_every_end_of_turn_ends_the_answer(client, token):
    ask = HELLO | {"max_tokens": 5, "logit_bias": {str(token): 100}}
    (choice,) = client.chat.completions.create(**ask).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", "")
    *_, last = client.chat.completions.create(**ask, stream=True)
    assert last.choices[0].finish_reason == "stop"


def test_other_tokens_do_not(client):
    ask = HELLO | {"max_tokens": 5, "logit_bias": {"5": 100}}
    (choice,) = client.chat.completions.create(**ask).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "#" * 5)


def test_a_token_that_the_file_suppresses(client):
    ask = HELLO | {"max_tokens": 5, "logit_bias": {str(NEVER): 100}}
    for choose in ({}, {"temperature": 1.0, "seed": 1}):
        (choice,) = client.chat.completions.create(**ask | choose, logprobs=True).choices
        text = load_tokenizer(MODEL).decode([NEVER])
        assert text not in [entry.token for entry in choice.logprobs.content]


def test_structured_output(client):
    schema = {"name": "answer", "schema": TOOL["function"]["parameters"]}
    answer = client.chat.completions.create(
        **HELLO,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert json.loads(choice.message.content) in ({"loud": True}, {"loud": False})
    answer = client.chat.completions.create(**HELLO, extra_body={"regex": "(yes|no)é!"})
    assert answer.choices[0].message.content in ("yesé!", "noé!")


def test_tool_call(client):
    # Spaces are allowed between the parts of a call, and a model of random weights likes them.
    spaces = {token: -100 for space in " \n\t\r" for token in load_tokenizer(MODEL).encode(space)}
    answer = client.chat.completions.create(
        **HELLO, max_tokens=90, tools=[TOOL], tool_choice="required", logit_bias=spaces
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "ring"
    assert json.loads(call.function.arguments) in ({"loud": True}, {"loud": False})


def test_requests_with_tools_have_their_own_template(client, tmp_path):
    ask = HELLO | {"max_tokens": 1}
    plain = client.chat.completions.create(**ask)
    tools = client.chat.completions.create(**ask, tools=[TOOL])
    none = client.chat.completions.create(**ask, tools=[TOOL], tool_choice="none")
    tokenizer = load_tokenizer(MODEL)
    expected = [len(tokenizer.encode("ring hello: ")), len(tokenizer.apply_chat_template(
        HELLO["messages"], add_generation_prompt=True, return_dict=False
    ))]  # fmt: skip
    assert [tools.usage.prompt_tokens, plain.usage.prompt_tokens] == expected
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url"])
def test_a_text_model_takes_no_pictures(client, kind):
    part = {"type": kind, kind: {"url": PICTURE, "data": "", "format": "wav"}}
    content = [{"type": "text", "text": "What is this?"}, part]
    ask = HELLO | {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    with pytest.raises(BadRequestError):
        client.chat.completions.create(**ask)
    # The text alone is answered.
    ask["messages"] = [{"role": "user", "content": content[:1]}]
    assert client.chat.completions.create(**ask).choices
    url = str(client.base_url).replace("/v1/", "/generate")
    for field in ("image_data", "audio_data"):
        reply = requests.post(url, json={"text": "hello", field: PICTURE}, timeout=60)
        assert reply.status_code == 400 and "this is a text model" in reply.text


def test_reasoning(zygote, log):
    with zygote.serve(MODEL, log, *CPU, "--reasoning-parser", "deepseek-r1") as server:
        answer = _client(server).chat.completions.create(**HELLO, max_tokens=8)
    message = answer.choices[0].message
    assert message.reasoning_content and not message.content


def test_embeddings(zygote, log):
    texts = ["hello world", "hello"]
    with zygote.serve(MODEL, log, *CPU, "--is-embedding", "--dtype", "float32") as server:
        answer = _client(server).embeddings.create(model="default", input=texts)
        ranking = {"query": "hello", "documents": texts}
        reply = requests.post(f"{server.url}/v1/rerank", json=ranking, timeout=60)
    assert reply.status_code == 400 and "the model takes no pairs" in reply.text
    tokenizer, model = load_tokenizer(MODEL), read_model(MODEL)
    for text, found in zip(texts, answer.data, strict=True):
        expected = model.embedding(tokenizer.encode(text))
        assert np.abs(expected - found.embedding).max() < 1e-4


def _with_pooling(path: Path, pooling: int, causal: bool) -> Path:
    keys = {
        "qwen3.pooling_type": (pooling, gguf.GGUFValueType.UINT32),
        "qwen3.attention.causal": (causal, gguf.GGUFValueType.BOOL),
    }
    rewrite(MODEL, path, keys=keys)
    return path


@pytest.mark.parametrize(
    ("pooling", "name", "causal"), [(1, "mean", True), (2, "cls", False), (3, "last", False)]
)
def test_embeddings_pooled_as_the_file_says(zygote, log, tmp_path, pooling, name, causal):
    path = _with_pooling(tmp_path / "model.gguf", pooling, causal)
    # The second begins like the first, which the engine would find in its cache.
    texts = ["hello world and all that is in it", "hello world and all that is not", "hello"]
    arguments = (*CPU, "--is-embedding", "--dtype", "float32", "--chunked-prefill-size", "4")
    with zygote.serve(path, log, *arguments) as server:
        client = _client(server)
        found = [
            client.embeddings.create(model="default", input=text).data[0].embedding
            for text in texts
        ]
        together = client.embeddings.create(model="default", input=texts)
    tokenizer, model = load_tokenizer(MODEL), read_model(MODEL)
    for text, alone, beside in zip(texts, found, together.data, strict=True):
        expected = model.embedding(tokenizer.encode(text), name, causal)
        assert np.abs(expected - alone).max() < 1e-4
        assert np.abs(expected - beside.embedding).max() < 1e-4


def test_embeddings_of_a_model_that_looks_both_ways_on_the_simulated_npu(npu_engine, tmp_path):
    path = _with_pooling(tmp_path / "model.gguf", 1, False)
    prompts, model = [PROMPT, PROMPT[:1], PROMPT[:17]], read_model(MODEL)
    with npu_engine.load(path, "--is-embedding", dtype="float16") as served:
        embeddings = served.embed(prompts)
    for prompt, found in zip(prompts, embeddings, strict=True):
        error = np.abs(model.embedding(prompt, "mean", causal=False) - found).max()
        print(f"{len(prompt)} tokens: largest error {error:.1e}")
        assert error < 0.01
    assert np.abs(model.embedding(PROMPT, "mean") - embeddings[0]).max() > 0.03
