"""Bodies of HTTP requests: fields that routes use unchecked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from ascend_gguf.requests.values import INT32, RequestError, one_of, text, token_ids, whole_number

#: Variables that the engine sets for a chat template, or for its rendering.
_TOLD = ("messages", "conversation", "tools", "tokenize", "add_generation_prompt", "return_dict")


def check_body(
    path: str, body: Any, vocab_size: int, names: Mapping[str, tuple[str, Collection[str]]]
) -> None:
    """Check the JSON of a request.

    Args:
        path: path of the route.
        vocab_size: rows of the model's embedding.
        names: by path, the field that is a name, and the names that the engine knows.

    Raises:
        RequestError: a value that the route cannot handle.
    """
    if not isinstance(body, Mapping):
        raise RequestError("body", body, "an object")
    for field, check in _ROUTES.get(path, {}).items():
        if body.get(field) is not None:
            check(field, body[field])
    if path.endswith("/detokenize"):
        _check_tokens(body.get("tokens"), vocab_size)
    if path in names:
        field, known = names[path]
        one_of(field, body.get(field), known)


def _check_tokens(tokens: Any, vocab_size: int) -> None:
    if isinstance(tokens, list):
        for ids in tokens if any(isinstance(item, list) for item in tokens) else [tokens]:
            token_ids("tokens", ids, vocab_size)


def _log_level(field: str, value: Any) -> None:
    one_of(field, text(field, value).upper(), logging.getLevelNamesMapping())


def _object(field: str, value: Any, but: Collection[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise RequestError(field, value, "an object")
    for name in but:
        if name in value:
            raise RequestError(
                field, name, "variables that only the template sets", "not for a request"
            )


_CHAT: dict[str, Callable[[str, Any], Any]] = {
    "response_format": _object,
    "chat_template_kwargs": partial(_object, but=_TOLD),
}

#: Fields by route; each is checked if it is present.
_ROUTES: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(("/v1/chat/completions", "/invocations", "/v1/messages"), _CHAT),
    **dict.fromkeys(("/v1/tokenize", "/tokenize", "/v1/embeddings", "/v1/responses"), _CHAT),
    "/configure_logging": {
        "log_requests_level": partial(whole_number, low=0, high=3),
        "log_requests_format": partial(one_of, names=("text", "json")),
        "log_level": _log_level,
        "dump_requests_threshold": partial(whole_number, low=1, high=INT32),
    },
}
