"""The last line of defence: a request that the scheduler cannot take ends, not the server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, get_origin

import msgspec
from sglang.srt.managers import io_struct
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.runtime_context import get_model
from sglang.srt.utils.hf_transformers.common import check_gguf_file

from ascend_gguf.srt import metrics
from ascend_gguf.srt.device import lost_weights
from ascend_gguf.srt.overrides import override

logger = logging.getLogger(__name__)

#: Seconds that ``/slow_down`` may add to each step.
MOST_SLEEP = 1.0


def __init__(original: Callable, self: Scheduler, *args: Any, **kwargs: Any) -> None:
    """AROUND ``Scheduler.__init__``: the scheduler of a GGUF model and its parts are ours."""
    if check_gguf_file(get_model().model_path):
        override(self)
    original(self, *args, **kwargs)


def _making(part: str) -> Callable[[Callable, Scheduler], None]:
    """Overrides a method of ``Scheduler`` that makes a part of it."""

    def init(original: Callable, self: Scheduler) -> None:
        original(self)
        override(getattr(self, part))

    return init


init_profiler = _making("profiler_manager")
init_weight_updater = _making("weight_updater")
init_batch_result_processor = _making("batch_result_processor")


def _add_request_to_queue(
    original: Callable, self: Scheduler, req: Req, is_retracted: bool = False
) -> None:
    """Overrides ``Scheduler._add_request_to_queue``, which every request passes."""
    override(req)
    original(self, req, is_retracted)


def init_request_dispatcher(original: Callable, self: Scheduler) -> None:
    """Overrides the engine's: what a handler raises is its request's answer.

    What many requests have in common, their forward pass, is not guarded: what it leaves behind is
    not known.
    """
    original(self)
    dispatch = self._request_dispatcher

    def guarded(recv_req: Any) -> Any:
        _bound(recv_req)
        if (problem := lost_weights()) and list(self._tokenized_requests(recv_req)):
            return _answer(self, recv_req, problem)
        try:
            with _others_kept(self, recv_req):
                return _informed(recv_req, dispatch(recv_req))
        except Exception as error:
            logger.exception("%s: the engine cannot take it", type(recv_req).__name__)
            message = f"the engine cannot take this request: {error!r}"
            return _answer(self, recv_req, message)

    self._request_dispatcher = guarded


def _informed(recv_req: Any, answer: Any) -> Any:
    """The answer, in which the engine's state has what is known of GGUF models."""
    if isinstance(recv_req, io_struct.GetInternalStateReq):
        answer.internal_state["gguf"] = metrics.of_models()
    return answer


@contextlib.contextmanager
def _others_kept(scheduler: Any, recv_req: Any) -> Iterator[None]:
    """An abort is of one request: the engine takes every other whose name begins alike too."""
    name = getattr(recv_req, "rid", None)
    if not isinstance(recv_req, io_struct.AbortReq) or recv_req.abort_all or not name:
        yield
        return
    queued = (*scheduler.waiting_queue, *scheduler.grammar_manager.grammar_queue)
    others = {*queued, *scheduler.collect_inflight_reqs(), scheduler.chunked_req} - {None}
    others = [req for req in others if req.rid != name and req.rid.startswith(name)]
    for req in others:
        req.rid = f"\0{req.rid}"
    try:
        yield
    finally:
        for req in others:
            req.rid = req.rid[1:]


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
    return None if prompts else _failed(recv_req, message)


def _failed(recv_req: Any, message: str) -> Any:
    """The output of such a request, with what it has of success, message and name; or None."""
    name = type(recv_req).__name__.removesuffix("Input")
    output = getattr(io_struct, f"{name}Output", None)
    if output is None:
        return None
    known = dict.fromkeys(("message", "error_message", "error"), message)
    known |= {name: getattr(recv_req, name, None) for name in ("rid", "session_id")}
    fields = msgspec.structs.fields(output)
    return output(
        **{
            field.name: known[field.name] if field.name in known else _empty(field.type)
            for field in fields
            if field.required or field.name in (*known, "success")
        }
    )


def _empty(kind: Any) -> Any:
    """The value of a type that says nothing: False, "", 0, [], {} or None."""
    plain = get_origin(kind) or kind
    return plain() if plain in (bool, str, int, float, list, dict) else None
