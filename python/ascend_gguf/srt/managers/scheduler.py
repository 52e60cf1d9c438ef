"""The last line of defence: a request that the scheduler cannot take ends, not the server."""

from __future__ import annotations

import dataclasses
import logging
from http import HTTPStatus
from typing import Any

import msgspec
from sglang.srt.managers import io_struct

from ascend_gguf.srt.device import lost_weights, serves_gguf

logger = logging.getLogger(__name__)

#: Seconds that ``/slow_down`` may add to each step.
MOST_SLEEP = 1.0


def guard_requests(result: None, self: Any) -> None:
    """AFTER ``Scheduler.init_request_dispatcher``: what a handler raises is its request's answer.

    What many requests have in common, their forward pass, is not guarded: what it leaves behind is
    not known.
    """
    dispatch = self._request_dispatcher

    def guarded(recv_req: Any) -> Any:
        if not serves_gguf():
            return dispatch(recv_req)
        _bound(recv_req)
        if (problem := lost_weights()) and list(self._tokenized_requests(recv_req)):
            return _answer(self, recv_req, problem)
        try:
            return dispatch(recv_req)
        except Exception as error:
            logger.exception("%s: the engine cannot take it", type(recv_req).__name__)
            message = f"the engine cannot take this request: {error!r}"
            return _answer(self, recv_req, message)

    self._request_dispatcher = guarded


def _bound(recv_req: Any) -> None:
    if isinstance(recv_req, io_struct.SlowDownReqInput):
        seconds = recv_req.forward_sleep_time
        if seconds is not None and seconds > MOST_SLEEP:
            logger.warning("slow_down: %g s a step are more than %g", seconds, MOST_SLEEP)
            recv_req.forward_sleep_time = MOST_SLEEP


def _answer(scheduler: Any, recv_req: Any, message: str) -> Any:
    """Ends the prompts of a request, or returns the output of another that says it failed."""
    prompts = list(scheduler._tokenized_requests(recv_req))
    for prompt in prompts:
        reason = {
            "type": "abort",
            "message": message,
            "status_code": HTTPStatus.BAD_REQUEST,
            "err_type": "BadRequestError",
        }
        scheduler.send_abort_output(
            io_struct.AbortReq(rid=prompt.rid, finished_reason=reason), prompt
        )
    return None if prompts else _failed(type(recv_req).__name__, message)


def _failed(request: str, message: str) -> Any:
    """The output of a request of this class, with what it has of success and message; or None."""
    output = getattr(io_struct, f"{request.removesuffix('Input')}Output", None)
    if output is None:
        return None
    known = {"success": False, "message": message}
    if dataclasses.is_dataclass(output):
        fields = {f.name: f.default is f.default_factory for f in dataclasses.fields(output)}
    else:
        fields = {f.name: f.required for f in msgspec.structs.fields(output)}
    return output(
        **{name: known.get(name) for name, required in fields.items() if required or name in known}
    )
