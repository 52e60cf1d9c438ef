"""What SGLang calls where a CPU is ARM's, which it takes to have the CPU build of sgl_kernel."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)


def init_cpu_threads_env(cpu_ids: str) -> None:
    """Binds nothing: torch's threads stay where the system puts them, as on x86-64 without AMX."""
    logger.info("CPU threads are not bound to cores %s: sgl_kernel has no CPU build here", cpu_ids)


def initialize(size: int, rank: int) -> None:  # noqa: ARG001
    """No all-reduce in shared memory: tells the engine so, which then uses torch.distributed."""
    os.environ["LOCAL_SIZE"] = "0"


def provide() -> None:
    """Put both into ``torch.ops.sgl_kernel``, as plain functions."""
    for function in (init_cpu_threads_env, initialize):
        setattr(torch.ops.sgl_kernel, function.__name__, function)
