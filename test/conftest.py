"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Zygote, cpu_environment, npu_simulation


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks CPU servers in a few seconds each."""
    process = Zygote(cpu_environment())
    yield process
    process.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server of this test writes."""
    return tmp_path / "server.log"


@pytest.fixture(scope="session")
def npu_zygote() -> Iterator[Zygote]:
    """Forks servers on the simulated NPU."""
    prefix, environment = npu_simulation()
    process = Zygote(environment, prefix)
    yield process
    process.close()
