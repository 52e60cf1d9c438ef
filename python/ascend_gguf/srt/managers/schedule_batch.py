"""What ends an answer."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT

from ascend_gguf.srt.not_finite import abort_reason

#: Seconds that the patterns of ``stop_regex`` may search an answer at each step: everybody waits.
MOST_SECONDS = 0.1


def _check_str_based_finish(original: Callable, self: Any, new_accepted_len: int = 1) -> bool:
    """Overrides the engine's: a pattern that searches too long ends its request."""
    if not self.sampling_params.stop_regex_strs:
        return original(self, new_accepted_len)
    try:
        with seconds_at_most(MOST_SECONDS):
            return bool(original(self, new_accepted_len)) or self.finished()
    except SearchTimeout as error:
        self.finished_reason = FINISH_ABORT(
            f"stop_regex: {error}", HTTPStatus.BAD_REQUEST, "BadRequestError"
        )
        return True


def _check_vocab_boundary_finish(
    original: Callable, self: Any, new_accepted_tokens: list[int] | None = None
) -> bool:
    """Overrides ``Req._check_vocab_boundary_finish``: no token where logits are not finite.

    The engine ends such an answer as if it were complete, and with a token in it.
    """
    if not original(self, new_accepted_tokens):
        return False
    self.finished_len -= 1
    del self.output_ids[self.finished_len :]
    self.return_logprob = False  # of this step there are none
    self.grammar = None
    self.finished_reason = abort_reason("logits", self.rid)
    return True


class SearchTimeout(re.error):
    """A search that was interrupted: an error of ``re``, which the engine's own code expects."""


@contextlib.contextmanager
def seconds_at_most(seconds: float) -> Iterator[None]:
    """Interrupt what runs longer, a search of ``re`` too, which looks for signals as it goes.

    Raises:
        SearchTimeout: it did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # there are no signals elsewhere
        return

    def interrupt(*_: object) -> None:
        raise SearchTimeout(f"the search took more than {seconds:g} s of this answer's step")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
