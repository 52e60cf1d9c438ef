"""Machine code of kernels, kept for all processes of a test run.

Hundreds of models are loaded, each in processes of its own, which would compile the same kernels
again: a third of what they do.  A kernel is known by its LLVM IR and what it is compiled for.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llvmlite import binding as llvm

#: The environment variable that names the folder of a test run.
RUN = "TEST_RUN_FOLDER"


def install() -> None:
    """Share what this process compiles from now on, if :data:`RUN` says where."""
    if RUN not in os.environ:
        return
    folder = Path(os.environ[RUN], "kernels")
    folder.mkdir(exist_ok=True)
    parse, create_machine = llvm.parse_assembly, llvm.Target.create_target_machine
    create_engine = llvm.create_mcjit_compiler

    def parse_assembly(text: str, *arguments) -> llvm.ModuleRef:
        module = parse(text, *arguments)
        module.text = text
        return module

    def create_target_machine(target: llvm.Target, *args, **kwargs) -> llvm.TargetMachine:
        machine = create_machine(target, *args, **kwargs)
        machine.made_for = f"{target.triple} {args} {kwargs}"
        return machine

    def create_mcjit_compiler(module: llvm.ModuleRef, machine: llvm.TargetMachine):
        key = hashlib.sha256(f"{machine.made_for}\n{module.text}".encode()).hexdigest()
        path = folder / key
        engine = create_engine(module, machine)
        engine.set_object_cache(
            lambda module, code: _write(path, code),
            lambda module: path.read_bytes() if path.exists() else None,
        )
        return engine

    llvm.parse_assembly = parse_assembly
    llvm.Target.create_target_machine = create_target_machine
    llvm.create_mcjit_compiler = create_mcjit_compiler


def _write(path: Path, code: bytes) -> None:
    """At once, as others may read it now."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(code)
    part.replace(path)
