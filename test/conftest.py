"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import kernel_cache
from engine_process import EngineProcess
from hf_models import TINY, Written, write_model
from hub_standin import hub
from resolver import Resolver
from serving import Zygote, cpu_environment, npu_simulation

DATA = Path(__file__).with_name("data")

#: What :func:`resolver` finds on the hub.
REPOSITORIES = {
    "owner/one": {"config.json": DATA / "README.md", "m.gguf": DATA / "qwen3-dense-Q4_K_M.gguf"},
    "owner/several": {
        "m-Q4_K_M.gguf": DATA / "qwen2-dense-Q4_K_M.gguf",
        "m-Q8_0.gguf": DATA / "qwen3-dense-Q4_K_M.gguf",
    },
    "owner/none": {"README.md": DATA / "README.md"},
}


_OWN_CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    if kernel_cache.VARIABLE not in os.environ:
        # The first of pytest's processes: the others inherit its environment.
        config.stash[_OWN_CACHE] = folder = tempfile.mkdtemp(prefix="kernels-")
        os.environ[kernel_cache.VARIABLE] = folder
    kernel_cache.install()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OWN_CACHE in config.stash:
        del os.environ[kernel_cache.VARIABLE]
        shutil.rmtree(config.stash[_OWN_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks CPU servers in a few seconds each."""
    # Compiling costs ten seconds for some models, and these check numbers, not speed.
    process = Zygote(cpu_environment() | {"TORCHDYNAMO_DISABLE": "1"})
    yield process
    process.close()


@pytest.fixture(scope="session")
def cpu_engine(zygote) -> Iterator[EngineProcess]:
    """Loads models on the CPU in a second or two each, without a server."""
    with EngineProcess("cpu", zygote=zygote) as process:
        yield process


@pytest.fixture(scope="session")
def npu_engine(npu_zygote) -> Iterator[EngineProcess]:
    """The same on the simulated NPU."""
    with EngineProcess("npu", zygote=npu_zygote) as process:
        yield process


@pytest.fixture(scope="session")
def resolver(tmp_path_factory) -> Iterator[Resolver]:
    """Resolves command lines, with a stand-in of the Hugging Face hub."""
    with hub(REPOSITORIES) as endpoint:
        cache = tmp_path_factory.mktemp("hub")
        process = Resolver(cpu_environment() | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)})
        yield process
        process.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], Written]:
    """The small model of a name in :data:`hf_models.TINY`, written once."""

    @cache
    def written(name: str) -> Written:
        return write_model(tmp_path_factory.mktemp(name), TINY[name])

    return written


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
