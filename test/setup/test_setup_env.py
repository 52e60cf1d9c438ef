"""python/make/setup_env.py: when the environment is ready, completed or built anew."""

import json
import os
import subprocess
import sys

import pytest

import setup_env


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout without an environment, for the functions of setup_env."""
    environment = tmp_path / ".venv"
    monkeypatch.setattr(setup_env, "CHECKOUT", tmp_path)
    monkeypatch.setattr(setup_env, "ENVIRONMENT", environment)
    monkeypatch.setattr(setup_env, "PYTHON", environment / "bin" / "python")
    monkeypatch.setattr(setup_env, "STAMP", environment / "stamp.json")
    for name in ("TORCH", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy==1\n")
    monkeypatch.setattr(setup_env, "REQUIREMENTS", requirements)
    (tmp_path / "pyproject.toml").write_text("")
    return tmp_path


def fake_environment():
    """Something that passes for the environment: the interpreter, a pip, a stamp."""
    scripts = setup_env.ENVIRONMENT / "bin"
    scripts.mkdir(parents=True)
    interpreter = f"#!/bin/sh\necho '{setup_env.ENVIRONMENT} {sys.version_info[:3]}'\n"
    setup_env.PYTHON.write_text(interpreter)
    setup_env.PYTHON.chmod(0o755)
    (scripts / "pip").write_text(f"#!{setup_env.PYTHON}\n")
    write_stamp(setup_env.place())


def write_stamp(place):
    stamp = {"place": place, "contents": setup_env.contents()}
    setup_env.STAMP.write_text(json.dumps(stamp))


def test_nothing_to_do(checkout, monkeypatch):
    fake_environment()
    monkeypatch.setattr(setup_env, "_install", lambda: pytest.fail("installed again"))
    setup_env.ensure()


def test_no_environment(checkout):
    assert not setup_env._is_ready() and not setup_env._works()


def test_killed(checkout):
    """Packages may be half unpacked: it is built anew."""
    fake_environment()
    setup_env.STAMP.write_text(json.dumps({"place": setup_env.place()}))
    assert not setup_env._is_ready() and not setup_env._works()


def test_failed_install_is_completed(checkout, monkeypatch):
    fake_environment()
    monkeypatch.setattr(setup_env, "_is_ready", lambda: False)

    def install():
        assert not setup_env._works()
        raise setup_env.SetupError("no network")

    monkeypatch.setattr(setup_env, "_install_packages", install)
    assert setup_env.main() == 1
    assert setup_env._works()


def test_half_removed(checkout, monkeypatch):
    fake_environment()
    (setup_env.ENVIRONMENT / "pyvenv.cfg").write_text("")
    write_stamp({})

    def rmtree(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_env.shutil, "rmtree", rmtree)
    assert setup_env.main() == 130
    assert not (setup_env.ENVIRONMENT / "pyvenv.cfg").exists()


def test_made_by_hand(checkout):
    """No stamp: what is there is kept and completed."""
    fake_environment()
    setup_env.STAMP.unlink()
    assert not setup_env._is_ready() and setup_env._works()


def test_unreadable_stamp(checkout):
    fake_environment()
    setup_env.STAMP.write_text("{")
    assert not setup_env._is_ready() and setup_env._works()


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements(checkout, name):
    fake_environment()
    (checkout / name).write_text("numpy==2\n")
    assert not setup_env._is_ready() and setup_env._works()


def test_another_torch(checkout, monkeypatch):
    fake_environment()
    monkeypatch.setenv("TORCH", "torch==2.12.0")
    assert not setup_env._is_ready() and setup_env._works()


@pytest.mark.parametrize("moved", ["checkout", "interpreter", "python"])
def test_moved(checkout, moved):
    fake_environment()
    write_stamp(setup_env.place() | {moved: "elsewhere"})
    assert not setup_env._is_ready() and not setup_env._works()


def test_interpreter_gone(checkout):
    fake_environment()
    setup_env.PYTHON.unlink()
    setup_env.PYTHON.symlink_to(checkout / "gone")
    assert not setup_env._is_ready() and not setup_env._works()


def test_copied_without_stamp(checkout):
    """Its scripts still start the interpreter of the place it was copied from."""
    fake_environment()
    setup_env.STAMP.unlink()
    (setup_env.ENVIRONMENT / "bin" / "pip").write_text("#!/elsewhere/.venv/bin/python\n")
    assert not setup_env._works()


@pytest.mark.parametrize("index", [None, "https://example.org/whl/cpu"])
@pytest.mark.parametrize("missing", range(4))
def test_where_torch_comes_from(checkout, monkeypatch, index, missing):
    """The configured indexes, the CPU builds' own, and last a CUDA build with its libraries."""
    calls = []

    def pip(*arguments, failure, quiet=False):
        calls.append(arguments)
        if len(calls) <= missing:
            raise setup_env.SetupError(failure)

    monkeypatch.setattr(setup_env, "_pip", pip)
    monkeypatch.setattr(setup_env, "CPU_BUILD", "+cpu")
    monkeypatch.setenv("TORCH", "2.10")
    if index:
        monkeypatch.setenv("TORCH_INDEX", index)
    if missing == 3:
        with pytest.raises(setup_env.SetupError, match=r"no torch==2\.10\.0\+cpu .* TORCH_INDEX"):
            setup_env._install_torch()
    else:
        setup_env._install_torch()
    cpu = ("--no-deps", "torch==2.10.0+cpu")
    extra = ("--extra-index-url", index or setup_env.DEFAULT_TORCH_INDEX)
    assert calls == [cpu, (*cpu, *extra), ("torch==2.10.0",)][: missing + 1]


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("", "torch==2.13.0+cpu"),
        ("2.12", "torch==2.12.1+cpu"),
        ("torch==2.14.0", "torch==2.14.0"),
        ("2.9", None),
        ("2.13.0", None),
    ],
)
def test_which_torch(monkeypatch, torch, expected):
    monkeypatch.setenv("TORCH", torch)
    monkeypatch.setattr(setup_env, "CPU_BUILD", "+cpu")
    if expected:
        assert setup_env.torch_requirement() == expected
    else:
        with pytest.raises(setup_env.SetupError, match="expected one of 2.10, 2.11, 2.12, 2.13"):
            setup_env.torch_requirement()


def test_the_simulation_has_a_torch_npu_for_each_torch():
    from npu_sim import build

    assert build.TORCH_NPU_RELEASES.keys() == setup_env.TORCHES.keys()


def test_a_failure_is_one_line(checkout, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "_is_ready", lambda: False)

    def install():
        setup_env._run("false", failure="it went wrong", quiet=True)

    monkeypatch.setattr(setup_env, "_install", install)
    assert setup_env.main() == 1
    assert capsys.readouterr().err == "make setup: it went wrong\n"


def test_requirements_are_pinned_and_free_of_cuda():
    lines = setup_env.REQUIREMENTS.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "sglang==0.5.23" in pins
    for pin in pins:
        assert pin.count("==") == 1, pin
        assert not pin.startswith(("nvidia", "cuda", "torch", "flash")), pin


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    make = ["make", "--no-print-directory", "-C", str(setup_env.CHECKOUT), "setup", f"PYTHON={old}"]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("MAKE")}
    refused = subprocess.run(make, capture_output=True, text=True, env=environment)
    assert refused.returncode != 0
    assert "make setup: needs Python 3.11 or newer" in refused.stderr
