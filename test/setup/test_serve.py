"""python/make/serve.py: what `make serve` runs, and what it refuses."""

import os
import subprocess
import sys

import pytest

import serve
import setup_env


@pytest.fixture
def model(tmp_path, monkeypatch):
    for name in ("SGLANG_USE_CPU_ENGINE", "SGLANG_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "a model.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.mark.parametrize(
    "arguments, ranks",
    [
        ([], 1),
        (["--tp-size", "2"], 2),
        (["--tp=4", "--pp-size=2"], 8),
        (["--dtype", "float32", "--data-parallel-size", "3"], 3),
        (["--tp-size-of-something-else", "5"], 1),
    ],
)
def test_number_of_ranks(arguments, ranks):
    assert serve.number_of_ranks(arguments) == ranks


def test_a_size_that_is_no_number():
    with pytest.raises(serve.UsageError, match="'two'"):
        serve.number_of_ranks(["--tp-size", "two"])


@pytest.mark.parametrize(
    "ranks, cpus, binding",
    [
        (2, [0, 1], "0|1"),
        (2, [0, 1, 2, 3, 8], "0,1|2,3"),
        (4, [3, 5], "3|5|3|5"),
        (1, [0, 1, 2], "0,1,2"),
    ],
)
def test_thread_binding(ranks, cpus, binding):
    assert serve.thread_binding(ranks, cpus) == binding


def test_cpus_are_ours_and_distinct():
    cpus = serve.physical_cpus()
    assert cpus and set(cpus) <= os.sched_getaffinity(0) and len(set(cpus)) == len(cpus)


def test_cpu_command(model, monkeypatch):
    monkeypatch.setattr(serve, "has_sgl_kernel", lambda: False)
    command, added = serve.plan(model, "cpu", 30001, False, ["--dtype", "float32"])
    assert command == [
        str(setup_env.PYTHON), "-m", "sglang.launch_server", "--model-path", model,
        "--quantization", "gguf", "--device", "cpu", "--port", "30001",
        "--sleep-on-idle", "--attention-backend", "torch_native", "--dtype", "float32",
    ]  # fmt: skip
    assert added == {"SGLANG_USE_CPU_ENGINE": "1"}


@pytest.mark.parametrize(
    "typed",
    ["a model.gguf", ".", "owner/repo:Q4_K_M", "hf.co/owner/repo", "owner/repo/sub/m.gguf"],
)
def test_the_engine_is_given_what_was_typed(model, tmp_path, monkeypatch, typed):
    """It finds folders and references to the hub itself, and serves them by that name."""
    monkeypatch.chdir(tmp_path)
    assert typed in serve.plan(typed, "cpu", 30001, False, [])[0]


def test_the_real_sgl_kernel_keeps_its_attention(model, monkeypatch):
    monkeypatch.setattr(serve, "has_sgl_kernel", lambda: True)
    assert "--attention-backend" not in serve.plan(model, "cpu", 30001, False, [])[0]


def test_tensor_parallel_on_one_numa_node(model, monkeypatch):
    monkeypatch.setattr(serve, "physical_cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(serve, "numa_nodes", lambda: 1)
    _, added = serve.plan(model, "cpu", 30001, False, ["--tp", "2"])
    assert added["SGLANG_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert added["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr(serve, "numa_nodes", lambda: 2)
    _, added = serve.plan(model, "cpu", 30001, False, ["--tp", "2"])
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in added


def test_what_the_user_set_stays(model, monkeypatch):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "7|9")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    _, added = serve.plan(model, "cpu", 30001, False, ["--tp", "2"])
    assert added == {"SGLANG_USE_CPU_ENGINE": "1"}


def test_npu_runs_in_the_active_environment(model):
    command, added = serve.plan(model, "npu", 30001, False, [])
    assert command[:3] == [sys.executable, "-m", "sglang.launch_server"]
    assert command[command.index("--device") + 1] == "npu"
    assert added == {"SGLANG_USE_CPU_ENGINE": "0"}


def test_simulated_npu(model, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    command, added = serve.plan(model, "npu", 30001, True, ["--tp-size", "2"])
    python = str(setup_env.PYTHON)
    assert command[:5] == [python, "-m", "npu_sim", "run", "--"]
    assert command[5:8] == [python, "-m", "sglang.launch_server"]
    assert added["PYTHONPATH"] == f"{setup_env.CHECKOUT / 'python'}{os.pathsep}mine"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": ""}, "which model"),
        ({"model": "absent.gguf"}, "MODEL=absent.gguf does not exist"),
        ({"model": "folder/absent.gguf"}, "MODEL=folder/absent.gguf does not exist"),
        ({"model": "./owner/repo:Q4_0"}, "MODEL=./owner/repo:Q4_0 does not exist"),
        ({"device": "tpu"}, "DEVICE=tpu is not one of cpu, npu"),
        ({"sim": True}, "add DEVICE=npu"),
        ({"port": "http"}, "PORT=http is not a port number"),
        ({"port": 70000}, "PORT=70000 is not a port number"),
    ],
)
def test_refused(model, change, message):
    asked = {"model": model, "device": "cpu", "port": 1, "sim": False, "engine_arguments": []}
    with pytest.raises(serve.UsageError, match=message):
        serve.plan(**(asked | change))


def test_one_line_for_the_user():
    script = [sys.executable, serve.__file__, "--model", "absent.gguf"]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "make serve: MODEL=absent.gguf does not exist\n"
