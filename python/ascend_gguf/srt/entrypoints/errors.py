"""What a route answers where its handler does not understand a request."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from ascend_gguf.requests.values import shown

logger = logging.getLogger(__name__)

#: What Python raises about values that nobody expected.
MISUNDERSTOOD = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, RuntimeError),
)
#: Those that say in words what is wrong.
_IN_WORDS = (ValueError, RuntimeError)

#: Problems of a request that are named.
_MOST_NAMED = 3


def answer_in_one_line(app: FastAPI) -> None:
    """Whatever a handler raises about a request is its answer: status 400, in one line.

    The engine gives a bare 500, or all of a request that does not fit the route, twice.
    """
    answer = app.exception_handlers[HTTPException]
    invalid = app.exception_handlers[RequestValidationError]

    async def misunderstood(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            logger.error("%s: %r", request.url.path, error, exc_info=error)
            error = HTTPException(HTTPStatus.BAD_REQUEST, problem_of(error))
        return await answer(request, error)

    async def does_not_fit(request: Request, error: RequestValidationError) -> Response:
        if request.url.path.endswith("/v1/systemone"):  # documents a form of its own
            return await invalid(request, error)
        message = in_one_line(error.errors())
        return await answer(request, HTTPException(HTTPStatus.BAD_REQUEST, message))

    for kind in MISUNDERSTOOD:
        app.add_exception_handler(kind, misunderstood)
    app.add_exception_handler(RequestValidationError, does_not_fit)


def problem_of(error: Exception) -> str:
    """What is wrong with a request that made a handler raise ``error``."""
    in_words = isinstance(error, _IN_WORDS) and str(error)
    return str(error) if in_words else f"the request is not understood: {error!r}"


def in_one_line(problems: list[dict[str, Any]]) -> str:
    """``FIELD: PROBLEM (found F); ...`` of the first of FastAPI's errors."""
    parts = []
    for problem in problems[:_MOST_NAMED]:
        field = ".".join(str(part) for part in problem["loc"] if part != "body") or "body"
        found = problem.get("ctx", {}).get("error") or shown(problem.get("input"))
        parts.append(f"{field}: {problem['msg']} (found {found})")
    if len(problems) > _MOST_NAMED:
        parts.append(f"and {len(problems) - _MOST_NAMED} more")
    return "; ".join(parts)
