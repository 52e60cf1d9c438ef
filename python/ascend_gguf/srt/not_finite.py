"""No answer is made of NaN: how a request whose numbers are not finite ends."""

from __future__ import annotations

import logging
from http import HTTPStatus

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.runtime_context import get_parallel

logger = logging.getLogger(__name__)

#: Stands for the token of a row of logits that has none.
NO_TOKEN = -1

_dtype: torch.dtype | None = None


def computes_in(dtype: torch.dtype) -> None:
    """This process's model computes in ``dtype``: what its NaN are likely to come from."""
    global _dtype
    _dtype = dtype


def abort_reason(what: str, rid: str) -> FINISH_ABORT:
    """Why the request ends, written to the log too.

    Args:
        what: the numbers that are not finite, as in "logits".
        rid: the request.
    """
    message = f"{what} are not finite numbers: no answer is made of them. {_likely_cause()}"
    if get_parallel().tp_rank == 0:
        logger.error("Request %s ended: %s", rid, message)
    return FINISH_ABORT(message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


def _likely_cause() -> str:
    if _dtype is torch.float16:
        return (
            "Likely the model's activations leave the range of float16 (65504): serve it with "
            "--dtype bfloat16, or float32 on the CPU."
        )
    return (
        "Likely the file's weights are damaged, or not meant for this architecture: compare with "
        "llama.cpp, or download the file again."
    )
