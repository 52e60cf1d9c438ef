"""A profile that cannot be taken, or written, ends itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def _profile_batch_predicate(original: Callable, self: Any, batch: Any) -> None:
    """AROUND ``SchedulerProfilerManager._profile_batch_predicate``, which each step passes."""
    try:
        original(self, batch)
    except Exception:
        logger.exception("The profile ended")
        self.__post_init__()  # as if none had been asked for
