"""Requests to a GGUF model are checked before they reach the scheduler."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.io_struct import GenerateReqInput, msgpack_encode
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.managers.utils import MsgpackDecodeError, msgpack_decode_explained
from sglang.srt.runtime_context import get_memory

from ascend_gguf.generation_config import suppressed_tokens
from ascend_gguf.reader import open_gguf
from ascend_gguf.requests import Limits, RequestError, check_prompt, check_request
from ascend_gguf.requests.checks import GREATEST_BIAS, MOST_AT_ONCE
from ascend_gguf.requests.values import INT32
from ascend_gguf.srt.overrides import override

# Seconds in which the last step of decoding ends.
_PATIENCE = 30.0

#: What the engine raises about values that it did not expect, before it sends a request on.
_MISUNDERSTOOD = (TypeError, AttributeError, LookupError, OverflowError, RecursionError)


def __init__(
    original: Callable, self: TokenizerManager, server_args: Any, port_args: Any, **kwargs: Any
) -> None:
    """AROUND ``TokenizerManager.__init__``: the one of a GGUF model is ours."""
    original(self, server_args, port_args, **kwargs)
    if has_gguf_model(self):
        override(self)


async def generate_request(
    original: Callable, self: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Overrides ``TokenizerManager.generate_request``, by which each request comes, of any route.

    Raises:
        ValueError: the field, what was found, what is allowed; the routes' status 400.
    """
    try:
        # Who calls the engine from Python waits for nobody else.
        check_request(obj, limits_of(self, None if request is None else MOST_AT_ONCE))
        _check_media(self, obj)
        _check_kind(self, obj)
        async for answer in original(self, obj, request):
            yield answer
    except RequestError as error:
        raise BadRequest(str(error)) from None
    except _MISUNDERSTOOD as error:
        raise BadRequest(f"the request is not understood: {error!r}") from error
    finally:
        # What a stream's route aborts once it has answered, if the request came to have a name.
        if not hasattr(obj, "is_single") or not (obj.is_single or isinstance(obj.rid, list)):
            obj.is_single, obj.rid = True, None


class BadRequest(ValueError, HTTPException):
    """What each route answers with status 400: some expect the one, some the other."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, HTTPStatus.BAD_REQUEST, message)
        self.args = (message,)

    def __str__(self) -> str:
        return self.detail


def _create_tokenized_object(
    original: Callable,
    self: Any,
    obj: Any,
    input_text: Any,
    input_ids: Any,
    *rest: Any,
    **named: Any,
) -> Any:
    """Overrides the engine's: the last check of a prompt, now that its tokens are known."""
    check_prompt(obj, input_ids, limits_of(self))
    made = original(self, obj, input_text, input_ids, *rest, **named)
    sampling = made.sampling_params
    # Repetitions of repetitions are longer than a message may say.
    sampling.stop_regex_max_len = min(sampling.stop_regex_max_len, INT32)
    if never := _never(self.model_config.model_path):
        sampling.logit_bias = (sampling.logit_bias or {}) | never
    _check_types(made)
    return made


@lru_cache(maxsize=2)
def _never(path: str) -> dict[str, float]:
    """Biases of tokens that no answer of the model has."""
    return dict.fromkeys(map(str, suppressed_tokens(open_gguf(path))), -GREATEST_BIAS)


def _check_types(made: Any) -> None:
    """What the scheduler would not read ends it: a field of another type than it expects."""
    plain = copy.copy(made)
    # Not the client's, or checked already.
    plain.time_stats = plain.mm_inputs = None
    if hasattr(plain, "input_embeds"):
        plain.input_embeds = None
    if isinstance(plain.positional_embed_overrides, PositionalEmbeds):
        plain.positional_embed_overrides = None
    try:
        msgpack_decode_explained(msgpack_encode(plain))
    except MsgpackDecodeError as error:
        problem, _, place = str(error).partition(" - at `$.")
        field = place.strip("`") or "the request"
        raise BadRequest(f"{field}: invalid value ({problem})") from None


def _check_media(manager: Any, obj: Any) -> None:
    if manager.model_config.is_multimodal:
        return
    for field in ("image_data", "video_data", "audio_data"):
        if getattr(obj, field, None):
            raise RequestError(field, getattr(obj, field), "nothing", "this is a text model")


def _check_kind(manager: Any, obj: Any) -> None:
    if isinstance(obj, GenerateReqInput) and not manager.is_generation:
        allowed = "/v1/embeddings, or a reranker's /v1/rerank"
        raise RequestError("request", "generation", allowed, "the model writes no text")
    # The engine takes any embedding's first number for the score of a pair of texts.
    if getattr(obj, "is_cross_encoder_request", False):
        raise RequestError(
            "query and documents", "pairs", "a reranker's /v1/rerank", "the model takes no pairs"
        )


async def _wait_for_model_update_from_disk(original: Callable, self: Any, obj: Any) -> tuple:
    """Overrides the engine's: the scheduler is a step behind the answers it has given.

    It calls that busy, and would not flush the cache of the old weights.
    """
    if obj.flush_cache and not self.is_pause:
        await self.flush_cache(timeout_s=_PATIENCE)
    return await original(self, obj)


def has_gguf_model(manager: Any) -> bool:
    return manager.model_config.quantization == "gguf"


def limits_of(manager: Any, answers: int | None = None) -> Limits:
    config = manager.model_config
    characters = None
    if manager.tokenizer is not None and not manager.allow_auto_truncate:
        # Of no more than a prompt's tokens, however they are written (composed characters too).
        characters = 4 * manager.context_len * _longest_token(manager.tokenizer)
    shares = not get_memory().disable_radix_cache
    return Limits(config.vocab_size, config.hidden_size, answers, characters, shares)


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)
