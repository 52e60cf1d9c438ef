"""Ollama's routes: options as Ollama has them, and streams that are whole or say what is wrong."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from fastapi import HTTPException

from ascend_gguf.srt.entrypoints.errors import problem_of


def _convert_options_to_sampling_params(
    original: Callable, self: Any, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Overrides ``OllamaServing._convert_options_to_sampling_params``.

    The engine's parameter for a seed has another name, and none has no limit for -1.
    """
    sampling = original(self, options)
    if "seed" in sampling:
        sampling["sampling_seed"] = sampling.pop("seed")
    if sampling["max_new_tokens"] in (-1, -2):  # without end, and up to the context's
        sampling["max_new_tokens"] = None
    return sampling


async def stream_whole(
    original: Callable, self: Any, gen_request: Any, raw_request: Any, model_name: str
) -> Any:
    """Overrides ``OllamaServing._stream_chat_response`` and ``_stream_generate_response``.

    The engine leaves out the text that comes with the end of an answer, and breaks the connection
    where an error comes.
    """
    serving = copy.copy(self)
    serving.tokenizer_manager = _Answers(self.tokenizer_manager)
    response = await original(serving, gen_request, raw_request, model_name)
    lines = aiter(response.body_iterator)
    first = await anext(lines)  # of a request that is refused the status is not sent yet
    response.body_iterator = _or_error(first, lines)
    return response


async def _or_error(first: bytes, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for line in lines:
            yield line
    except Exception as error:
        message = error.detail if isinstance(error, HTTPException) else problem_of(error)
        yield orjson.dumps({"error": message}) + b"\n"


class _Answers:
    """A tokenizer manager whose answers end behind their text."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def generate_request(self, obj: Any, request: Any) -> AsyncIterator[dict[str, Any]]:
        async for chunk in self._manager.generate_request(obj, request):
            reason = chunk["meta_info"].get("finish_reason")
            if reason is not None:
                if reason.get("status_code") is not None:
                    raise HTTPException(reason["status_code"], reason["message"])
                yield chunk | {"meta_info": chunk["meta_info"] | {"finish_reason": None}}
            yield chunk
