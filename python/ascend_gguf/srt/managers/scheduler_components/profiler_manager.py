"""A profile that cannot be taken, or written, ends itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.io_struct import ProfileReqOutput

logger = logging.getLogger(__name__)


def ended_by_an_error(original: Callable, self: Any, *args: Any) -> ProfileReqOutput | None:
    """Overrides ``SchedulerProfilerManager._profile`` (requests) and ``_profile_batch_predicate``.

    The latter is passed by each step, and ignores what it is told.
    """
    try:
        return original(self, *args)
    except Exception as error:
        logger.exception("The profile ended")
        profiler = self.torch_profiler
        self.__post_init__()  # as if none had been asked for
        if profiler is not None:
            # Nobody else would: it would record, and take memory, for as long as the server runs.
            with contextlib.suppress(Exception):
                profiler.stop()
        return ProfileReqOutput(success=False, message=f"the profile ended: {error!r}")
