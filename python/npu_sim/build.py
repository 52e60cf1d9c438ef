"""Installs torch_npu aside and compiles the stand-in libraries.

Everything is made in a temporary place and moved into position, under a lock: builds may run in
parallel, and an interrupted one leaves nothing half done.  What is up to date is left alone: the
libraries lie in a folder named after the hash of all they are made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from .paths import BASE, LIBRARIES, RUNTIME, SITE, TORCH, TORCH_NPU
from .runtime.opapi import table

# The torch_npu for each series of torch.
TORCH_NPU_RELEASES = {"2.10": "2.10.0.post4", "2.11": "2.11.0", "2.12": "2.12.0", "2.13": "2.13.0"}

# libtorch_npu.so links to these too; everything it needs of them is in libascendcl.so.
EMPTY_LIBRARIES = ("acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")

KEPT_BUILDS = 3

ACL_SOURCES = ("device.cpp", "memory.cpp", "stream.cpp", "recorder.cpp", "legacy.cpp")


def build(log=print) -> Path:
    """Makes SITE and the libraries ready, at once where they are; returns the libraries' folder."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise SystemExit(
            "npu_sim: x86-64 Linux only (runtime/opapi/table.py writes assembly for it)"
        )
    with _locked():
        _install(log)
        return _compile(log)


@contextmanager
def _locked():
    BASE.mkdir(parents=True, exist_ok=True)
    with open(BASE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fresh(stamp: Path, key: str) -> bool:
    return stamp.is_file() and stamp.read_text() == key


def _replace(new: Path, target: Path) -> None:
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def torch_npu_release() -> str:
    """The release of torch_npu for the environment's torch."""
    series = ".".join(metadata.version("torch").split(".")[:2])
    if series not in TORCH_NPU_RELEASES:
        known = ", ".join(TORCH_NPU_RELEASES)
        raise SystemExit(f"npu_sim: no torch_npu is known for torch {series}, only for {known}")
    return TORCH_NPU_RELEASES[series]


def _install(log) -> None:
    # Without dependencies: it and what it imports.
    requirements = [f"torch_npu=={torch_npu_release()}", "protobuf", "pyyaml"]
    key = " ".join(requirements)
    if _fresh(SITE / "stamp", key):
        return
    log(f"npu_sim: installing {key} into {SITE}")
    with tempfile.TemporaryDirectory(dir=BASE) as scratch:
        new = Path(scratch) / "site"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ]
        subprocess.run([*command, "--target", new, *requirements], check=True)
        (new / "stamp").write_text(key)
        _replace(new, SITE)


def _sources() -> list[Path]:
    return sorted(p for p in RUNTIME.rglob("*") if p.suffix in (".c", ".cpp", ".h")) + [
        RUNTIME / "opapi" / "table.py",
        Path(__file__),
    ]


def _key() -> str:
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for wheel in (TORCH, TORCH_NPU):
        digest.update((wheel / "version.py").read_bytes())
    return digest.hexdigest()


def _compile(log) -> Path:
    target = LIBRARIES / _key()[:16]
    if target.is_dir():
        return target
    log(f"npu_sim: compiling the stand-in libraries into {target}")
    LIBRARIES.mkdir(exist_ok=True)
    older = sorted(LIBRARIES.iterdir(), key=lambda p: p.stat().st_mtime)
    for path in older[:-KEPT_BUILDS]:
        shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=BASE) as scratch:
        new = Path(scratch) / "lib"
        new.mkdir()
        include = TORCH_NPU / "include"
        acl = include / "third_party" / "acl" / "inc"  # where torch_npu 2.10 has acl's headers
        _cxx(
            new,
            "ascendcl",
            [RUNTIME / "acl" / s for s in ACL_SOURCES],
            [include, acl],
            ["-ldl", "-lpthread"],
        )
        # The library's name in the process is what torch_npu links to.
        needs = [f"-L{new}", "-Wl,--no-as-needed", "-lascendcl"]
        _cxx(
            new,
            "hccl",
            [RUNTIME / "hccl" / "hccl.cpp"],
            [include, acl, include / "third_party" / "hccl" / "inc"],
            [*needs, "-lrt", "-ldl"],
        )
        for name in EMPTY_LIBRARIES:
            _c(new, name, [_write(scratch, f"{name}.c", "")], needs)
        _c(new, "atb", [RUNTIME / "acl" / "atb.c"], [])
        names = table.operator_names(TORCH_NPU)
        (new / "operators.txt").write_text("\n".join(names) + "\n")
        _c(
            new,
            "opapi",
            [RUNTIME / "opapi" / "containers.c", _write(scratch, "table.s", table.assembly(names))],
            needs,
        )
        # Where torch_npu looks for the destruction of executors.
        _c(
            new,
            "nnopbase",
            [_write(scratch, "nnopbase.c", "")],
            [f"-L{new}", "-Wl,--no-as-needed", "-lopapi", "-lascendcl"],
        )
        _compile_aten(new, [include, acl], needs)
        new.rename(target)
    return target


def _compile_aten(new: Path, include: list[Path], needs: list[str]) -> None:
    torch_include = TORCH / "include"
    _cxx(
        new,
        "npu_sim_aten",
        [RUNTIME / "aten" / "redirect.cpp"],
        [*include, torch_include, torch_include / "torch" / "csrc" / "api" / "include"],
        [
            f"-L{TORCH / 'lib'}",
            "-ltorch_cpu",
            "-lc10",
            f"-L{TORCH_NPU / 'lib'}",
            "-ltorch_npu",
            *needs,
            "-Wl,--unresolved-symbols=ignore-in-shared-libs",
        ],
    )


def _write(folder: str, name: str, text: str) -> Path:
    path = Path(folder) / name
    path.write_text(text)
    return path


def _c(out: Path, name: str, sources: list[Path], libraries: list[str]) -> None:
    _run(
        [
            "gcc",
            "-O1",
            "-fPIC",
            "-shared",
            f"-Wl,-soname,lib{name}.so",
            "-o",
            out / f"lib{name}.so",
            *sources,
            *libraries,
        ]
    )


def _cxx(
    out: Path, name: str, sources: list[Path], include: list[Path], libraries: list[str]
) -> None:
    # The headers of the wheels warn; ours are compiled without warnings by the tests' own flags.
    includes = [argument for path in include for argument in ("-isystem", path)]
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-fPIC", "-shared", f"-Wl,-soname,lib{name}.so"]
    _run([*command, *includes, *sources, "-o", out / f"lib{name}.so", *libraries])


def _run(command: list) -> None:
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"npu_sim: {' '.join(map(str, command))}\n{done.stderr}")
