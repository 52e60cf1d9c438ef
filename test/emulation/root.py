"""An environment of Debian for aarch64 that runs under emulation: ``build/arm``.

Python and its libraries are Debian's packages, unpacked beside each other; torch, the engine and
what it imports are the wheels for aarch64 of the pinned releases.  Nothing is installed on this
machine, and no root rights are needed.  Needs Debian's ``qemu-user-static``, and apt with Debian's
sources.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setup_env import CHECKOUT, REQUIREMENTS, TORCHES

FOLDER = CHECKOUT / "build" / "arm"
SYSTEM, PACKAGES = FOLDER / "system", FOLDER / "packages"

_EMULATOR = "qemu-aarch64-static"
_DEBIAN = ("python3", "libgomp1", "libstdc++6", "zlib1g")
# The last series of torch whose plain release is a CPU build there.
_TORCH = f"torch=={TORCHES['2.10']}"
_PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(17, 36)), "manylinux2014_aarch64")


def command() -> list[str]:
    """What runs ``python ARGUMENTS`` there when ``python ARGUMENTS`` is appended to it."""
    python = f'"{SYSTEM}/usr/bin/python3"'
    script = f'shift; exec {_EMULATOR} -L "{SYSTEM}" {python} "$@" 2>>"{log()}"'
    return ["sh", "-c", script, "python3"]


def environment() -> dict[str, str]:
    """The variables of a process there, with this checkout's package and the CPU's stand-ins."""
    search = (PACKAGES, CHECKOUT / "python", CHECKOUT / "python" / "standins")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, search)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "TORCHDYNAMO_DISABLE": "1",  # there is no compiler
        "OMP_NUM_THREADS": "1",
    }


def log() -> Path:
    """Where processes there write what is not a server's log."""
    return FOLDER / "errors.log"


def ensure() -> None:
    """Make it, if it is not there as it is asked for; takes three minutes and 3 GB.

    Raises:
        SystemExit: something is missing, with what to do.
    """
    if shutil.which(_EMULATOR) is None or shutil.which("apt-get") is None:
        raise SystemExit("make arm-serve: needs apt, and qemu-user-static (apt install it)")
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = FOLDER / "stamp"
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(FOLDER, ignore_errors=True)
        SYSTEM.mkdir(parents=True)
        _unpack_system()
        _install_packages()
        stamp.write_text(digest)
    # The engine finds the plugin by what is installed; the package itself is the checkout's.
    files = importlib.metadata.distribution("ascend-gguf").files or ()
    (points,) = (file for file in files if file.name == "entry_points.txt")
    shutil.copytree(points.locate().parent, PACKAGES / points.parent.name, dirs_exist_ok=True)


def _run(*arguments: str | os.PathLike) -> None:
    finished = subprocess.run(arguments, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"make arm-serve: {arguments[0]} failed: {finished.stderr[-2000:]}")


def _unpack_system() -> None:
    print("  unpacking Debian's Python for aarch64", flush=True)
    apt = FOLDER / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "archives" / "partial").mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed there
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
    }
    get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    _run(*get, "update")
    _run(*get, "install", "--yes", "--no-install-recommends", "--download-only", *_DEBIAN)
    for package in (apt / "archives").glob("*.deb"):
        _run("dpkg-deb", "--extract", package, SYSTEM)


def _install_packages() -> None:
    print(f"  installing {_TORCH} and SGLang for aarch64", flush=True)
    (library,) = SYSTEM.glob("usr/lib/python3.*")
    version = library.name.removeprefix("python")
    options = [f"--platform={platform}" for platform in _PLATFORMS]
    options += [f"--abi={abi}" for abi in (f"cp{version.replace('.', '')}", "abi3", "none")]
    options += ["--implementation=cp", f"--python-version={version}", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile"]
    _run(*pip, *options, "--target", PACKAGES, _TORCH, "-r", REQUIREMENTS)
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == version:  # emulation takes minutes
        compile_all = [sys.executable, "-m", "compileall", "-qq", "-j", "0", PACKAGES]
        subprocess.run(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
