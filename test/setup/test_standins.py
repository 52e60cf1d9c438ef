"""python/standins: imports succeed, calls fail by name, real packages win, torch versions."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import setup_env
from setup_env import STANDINS

PACKAGES = ["torchvision", "torchaudio", "sgl_kernel"]


def run_in_environment(site_packages: Path, code: str) -> str:
    """What ``code`` prints where ``site_packages`` holds what is installed, set up as .venv is."""
    setup_env.write_pth(site_packages)
    start = f"import site; site.addsitedir({str(site_packages)!r})\n"
    # -I -S: nothing of the environment the tests run in.
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def loaded(package: str):
    """The stand-in for ``package``; skips the test where the real one is installed."""
    module = import_module(package)
    if Path(module.__file__).parent.parent != STANDINS:
        pytest.skip(f"the real {package} is installed, in place of its stand-in")
    return module


@pytest.fixture(autouse=True)
def standins_on_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(STANDINS)])


@pytest.mark.parametrize("package", PACKAGES)
def test_submodules_and_names_import(package):
    loaded(package)
    namespace: dict = {}
    exec(f"import {package}.some.sub.module\nfrom {package}.other import Thing, run", namespace)
    assert namespace["Thing"].inner.__qualname__ == "Thing.inner"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_call_names_what_is_missing(package):
    loaded(package)
    namespace: dict = {}
    exec(f"from {package}.deep.er import Thing", namespace)
    with pytest.raises(NotImplementedError, match=rf"^{package}\.deep\.er\.Thing is a stand-in: "):
        namespace["Thing"](1, key=2)
    with pytest.raises(NotImplementedError, match=rf"^{package}\.deep\.er\.Thing\.make is a "):
        namespace["Thing"].make()


def test_the_engine_starts_on_arm(monkeypatch):
    """It calls for threads and shared memory there, and is told that there is none of it."""
    from sglang.srt.distributed import bootstrap
    from sglang.srt.utils import common

    loaded("sgl_kernel")
    monkeypatch.setattr(bootstrap, "_is_cpu_arm64", True)
    parallel = SimpleNamespace(tp_size=2, tp_rank=0)
    monkeypatch.setattr(bootstrap, "get_parallel", lambda: parallel)
    monkeypatch.setenv("LOCAL_SIZE", "")
    bootstrap._init_cpu_threads_env(local_omp_cpuid="0,1")
    monkeypatch.setattr(common, "is_host_cpu_arm64", lambda: True)
    size = int(os.environ["LOCAL_SIZE"])
    assert not common.is_shm_available(torch.bfloat16, parallel.tp_size, size)


def test_an_operator_that_a_model_names_cannot_be_called():
    loaded("sgl_kernel")
    with pytest.raises(NotImplementedError, match=r"^sgl_kernel\.rmsnorm_cpu is a stand-in: "):
        torch.ops.sgl_kernel.rmsnorm_cpu(1)


def test_a_subclass_names_its_base():
    thing = loaded("torchvision").transforms.Compose
    child = type("Child", (thing,), {})
    assert issubclass(child, thing)
    with pytest.raises(
        NotImplementedError, match=r"^torchvision\.transforms\.Compose is a stand-in"
    ):
        child()


def test_annotations():
    image = loaded("torchvision").tv_tensors.Image
    assert image | None
    assert image[int] is image


def test_absent_dunders_stay_absent():
    assert not hasattr(loaded("sgl_kernel"), "__nonsense__")
    assert loaded("torchvision").__version__ == "0.0.0"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_real_package_wins(package, tmp_path):
    real = tmp_path / package
    real.mkdir()
    (real / "__init__.py").write_text("answer = 'real'")
    (real / "part.py").write_text("answer = 'real part'")
    code = f"import {package}, {package}.part as part; print({package}.answer, part.answer)"
    assert run_in_environment(tmp_path, code) == "real real part"
    missing = f"""
import {package}
try:
    import {package}.absent
except ModuleNotFoundError as error:
    print(error)
"""
    assert run_in_environment(tmp_path, missing) == f"No module named '{package}.absent'"


def test_standins_do_not_affect_each_other(tmp_path):
    (tmp_path / "torchaudio.py").write_text("answer = 'real'")
    code = "import torchvision.io, torchaudio; print(torchaudio.answer, torchvision.__version__)"
    assert run_in_environment(tmp_path, code) == "real 0.0.0"


def test_the_environment_asks_for_the_cpu_engine(tmp_path, monkeypatch):
    code = "import os; print(os.environ['SGLANG_USE_CPU_ENGINE'])"
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    assert run_in_environment(tmp_path, code) == "1"
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "0")
    assert run_in_environment(tmp_path, code) == "0"


def test_the_engine_sees_no_amx_kernels():
    loaded("sgl_kernel")
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def cache_of(*shapes: tuple[int, ...]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Cache buffers with [rows, ...], their addresses and their bytes in a row."""
    buffers = [torch.randn(shape).to(torch.bfloat16) for shape in shapes]
    addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)
    strides = torch.tensor([buffer[0].numel() * buffer.element_size() for buffer in buffers])
    return buffers, addresses, strides


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_copy_all_layer_kv_cache(dtype):
    copy = loaded("sgl_kernel").copy_all_layer_kv_cache_cpu
    buffers, addresses, strides = cache_of((32, 2, 8), (32, 2, 8), (32, 1, 5))
    before = [buffer.clone() for buffer in buffers]
    # Overlapping: rows 3..7 move to 5..9, and 31 to 0.
    source, target = torch.tensor([3, 4, 5, 6, 7, 31]), torch.tensor([5, 6, 7, 8, 9, 0])
    copy(addresses, strides, target.to(dtype), source.to(dtype))
    for old, new in zip(before, buffers, strict=True):
        expected = old.clone()
        expected[target] = old[source]
        assert torch.equal(new, expected)


def test_copy_all_layer_kv_cache_refuses_bad_rows():
    copy = loaded("sgl_kernel").copy_all_layer_kv_cache_cpu
    buffers, addresses, strides = cache_of((4, 2))
    before = buffers[0].clone()
    with pytest.raises(ValueError, match="negative row -1"):
        copy(addresses, strides, torch.tensor([0]), torch.tensor([-1]))
    with pytest.raises(ValueError, match="2 rows to 1 places"):
        copy(addresses, strides, torch.tensor([0]), torch.tensor([1, 2]))
    copy(addresses, strides, torch.tensor([], dtype=torch.int64), torch.tensor([]).long())
    assert torch.equal(buffers[0], before)


def test_copy_through_the_engine():
    loaded("sgl_kernel")
    from sglang.kernels.ops.kvcache.cache_move import copy_all_layer_kv_cache_func

    (cache,), addresses, strides = cache_of((8, 3))
    row = cache[2].clone()
    copy_all_layer_kv_cache_func(addresses, strides, torch.tensor([6]), torch.tensor([2]), 1, 1, {})
    assert torch.equal(cache[6], row)
