"""Fixtures of tests that run the engine's classes in their own process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from srt.engine_layers import ranks


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """The engine with the patch, in this process, configured as for a small CPU server."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import get_context

    excepthook = sys.excepthook
    load_plugins()
    override = get_context().override_server_args(device="cpu")
    override.install()
    yield
    override.restore()
    sys.excepthook = excepthook


@pytest.fixture
def one_rank() -> Iterator[None]:
    with ranks():
        yield


@pytest.fixture
def other_device(monkeypatch) -> None:
    """As on a device that the patch does not serve."""
    from ascend_gguf.srt import device

    monkeypatch.setattr(device, "uses_ascend_methods", lambda: False)
