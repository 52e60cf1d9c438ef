"""What the OpenAI routes answer where they do not understand a request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi.responses import ORJSONResponse

from ascend_gguf.srt.entrypoints.errors import MISUNDERSTOOD, problem_of


def create_error_response(
    original: Callable,
    self: Any,
    message: str,
    err_type: str = "BadRequestError",
    status_code: int = 400,
    param: str | None = None,
) -> ORJSONResponse:
    """Overrides ``OpenAIServingBase.create_error_response``: what is raised is the request's fault.

    The engine's handlers have this made while they handle what they did not expect.
    """
    error = sys.exc_info()[1]
    if status_code == HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(error, MISUNDERSTOOD):
        message, err_type = problem_of(error), "BadRequestError"
        status_code = HTTPStatus.BAD_REQUEST
    return original(self, message, err_type, status_code, param)
