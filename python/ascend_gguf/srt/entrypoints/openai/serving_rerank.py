"""Rerankers: the prompt that the file has for them, and what its head says of the first label."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.entrypoints.openai import serving_rerank as engine
from sglang.srt.managers.io_struct import EmbeddingReqInput

from ascend_gguf.reader import open_gguf
from ascend_gguf.requests import RequestError
from ascend_gguf.requests.checks import MOST_AT_ONCE
from ascend_gguf.requests.values import text
from ascend_gguf.srt.managers.tokenizer_manager import limits_of
from ascend_gguf.tokenizer.reranking import filled, joined, rerank_template, takes_instruction

#: Of labels, of which the first counts; and of a score, as the head gives it.
_DECODER, _ENCODER = "Qwen3ForSequenceClassification", "BertForSequenceClassification"


async def _handle_non_streaming_request(
    original: Callable, self: Any, adapted_request: Any, request: Any, raw_request: Any
) -> Any:
    """Overrides ``OpenAIServingRerank``'s: scores of a reranker in a GGUF file.

    The engine knows rerankers that answer yes or no as text, and others that take a query and a
    document as a pair; these files have the former's prompt and a head like the latter.

    Raises:
        RequestError: names the field; HTTP status 400.
    """
    manager = self.tokenizer_manager
    kinds = manager.model_config.hf_config.architectures
    if _DECODER not in kinds and _ENCODER not in kinds:
        return await original(self, adapted_request, request, raw_request)
    prompts = await asyncio.to_thread(_prompts, manager, request)
    asked = EmbeddingReqInput(input_ids=prompts)
    answers = await manager.generate_request(asked, raw_request).__anext__()
    score = _first_label if _DECODER in kinds else _first
    for answer in answers:
        answer["embedding"] = [score(answer["embedding"])]
    return self._build_rerank_response(answers, request)


def _first_label(logits: list[float]) -> float:
    """Its probability; a label that is alone has another beside it that is zero."""
    if len(logits) == 1:
        logits = [*logits, 0.0]
    return torch.tensor(logits, dtype=torch.float64).softmax(-1)[0].item()


def _first(logits: float | list[float]) -> float:
    """As llama.cpp's server and the engine give it."""
    return logits[0] if isinstance(logits, list) else logits


def _prompts(manager: Any, request: Any) -> list[list[int]]:
    """The tokens of the query with each document."""
    if len(request.documents) > MOST_AT_ONCE:
        allowed = f"{MOST_AT_ONCE} at once"
        raise RequestError("documents", len(request.documents), allowed, "too many")
    longest = limits_of(manager).characters
    query = text("query", _text("query", request.query), longest)
    tokens_of = _prompt(manager, request.instruct or None)
    prompts = []
    for document in request.documents:
        prompts.append(tokens_of(query, text("documents", _text("documents", document), longest)))
        if len(prompts[-1]) > manager.context_len and not manager.allow_auto_truncate:
            allowed = f"{manager.context_len} tokens with the query"
            raise RequestError("documents", len(prompts[-1]), allowed, "too long")
    return prompts


def _prompt(manager: Any, instruction: str | None) -> Callable[[str, str], list[int]]:
    """``(query, document)`` to the tokens of the prompt."""
    tokenizer, file = manager.tokenizer, open_gguf(manager.model_config.model_path)
    own, template = tokenizer.chat_template, rerank_template(file)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    if isinstance(own, str) and engine._is_qwen3_reranker_template(own):  # --chat-template
        render = partial(engine._render_jinja_chat_template, own, instruct=instruction)
        return lambda query, document: encode(render(query=query, document=document))
    if instruction is not None and not takes_instruction(template):
        raise RequestError("instruct", instruction, "nothing", "the prompt has no place for it")
    if template is None:
        return partial(joined, file, tokenizer)
    return lambda query, document: encode(filled(template, query, document, instruction))


def _text(field: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else part.type
        if kind != "text":
            raise RequestError(field, kind, "text", "this is a text model")
    return engine._extract_text_from_content(content)
