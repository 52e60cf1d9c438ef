"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import brief_waits  # noqa: F401
import kernel_cache
from engine_process import EngineProcess
from hub_standin import hub
from kernel_cache import RUN
from resolver import Resolver
from serving import Zygote, cpu_environment, npu_simulation

if TYPE_CHECKING:
    from hf_models import Written

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


#: The environment variable that holds the hub's address.
HUB = "TEST_HUB"
#: The fixtures that start processes of the engine.
ENGINES = {"zygote", "npu_zygote", "engine_alone"}
_FIRST = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    if RUN not in os.environ:  # the first of pytest's processes: the others inherit
        config.stash[_FIRST] = run = contextlib.ExitStack()
        os.environ[RUN] = run.enter_context(tempfile.TemporaryDirectory(prefix="tests-"))
        run.callback(os.environ.pop, RUN)
        os.environ["ASCEND_GGUF_TUNED"] = f"{os.environ[RUN]}/tuned.json"  # there is none
        os.environ[HUB] = run.enter_context(hub(REPOSITORIES))
    kernel_cache.install()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _FIRST in config.stash:
        config.stash[_FIRST].close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts the engine, which `make check` leaves to `make test`."""
    for item in items:
        if ENGINES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.engine)


def _zygote(name: str, environment: dict[str, str], prefix: Sequence[str] = ()) -> Iterator[Zygote]:
    """One for all of pytest's processes."""
    process = Zygote(environment, prefix, Path(os.environ[RUN], name))
    yield process
    process.close()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks CPU servers in a few seconds each."""
    # Compiling costs ten seconds for some models, and these check numbers, not speed.
    environment = cpu_environment() | {"TORCHDYNAMO_DISABLE": "1"}
    environment |= {"HF_ENDPOINT": os.environ[HUB], "HF_HOME": f"{os.environ[RUN]}/hub"}
    yield from _zygote("cpu", environment)


@pytest.fixture(scope="session")
def npu_zygote() -> Iterator[Zygote]:
    """Forks servers on the simulated NPU."""
    prefix, environment = npu_simulation()
    yield from _zygote("npu", environment, prefix)


@pytest.fixture(scope="session")
def engine_alone() -> Iterator[Zygote]:
    """Forks servers on the simulated NPU that do not know of this project."""
    prefix, environment = npu_simulation()
    yield from _zygote("alone", environment | {"SGLANG_PLUGINS": "none"}, prefix)


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
def resolver(zygote) -> Iterator[Resolver]:
    """Resolves command lines, with a stand-in of the Hugging Face hub."""
    with contextlib.closing(Resolver(zygote)) as process:
        yield process


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], Written]:
    """The small model of a name in :data:`hf_models.TINY`, written once for all processes."""
    # Imports torch, which not all of pytest's processes need.
    from hf_models import TINY, Written, write_model

    models = Path(os.environ[RUN], "models")
    models.mkdir(exist_ok=True)

    @cache
    def written(name: str) -> Written:
        with open(models / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (models / name).exists():
                aside = models / f"{name}.part"
                write_model(aside, TINY[name])
                aside.rename(models / name)
        return Written(models / name / "model.gguf", models / name / "hf")

    return written


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server of this test writes."""
    return tmp_path / "server.log"
