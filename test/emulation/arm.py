"""Kernels compiled for ARM processors and run under emulation, on the memory of the tests.

A plugin for pytest that makes tests of kernels tests of the code that ARM processors get: ``make
arm``.  Needs ``qemu-user-static``, ``gcc-aarch64-linux-gnu`` and ``libc6-dev-arm64-cross`` of
Debian.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from llvmlite import binding as llvm
from llvmlite import ir

import ascend_gguf.codegen.compile as codegen_compile
import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen.threads import Code

# LLVM's name of a processor -> qemu's.  tsv110 is Kunpeng 920, a64fx has SVE.
_PROCESSORS = {"cortex-a72": "cortex-a72", "tsv110": "cortex-a76", "a64fx": "a64fx"}
_NAME = os.environ.get("ARM_PROCESSOR", "tsv110")
_COMPILER, _EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
_RUNNER = Path(__file__).with_name("run_kernel.c")
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)

_folder = tempfile.TemporaryDirectory(prefix="arm-kernels-")

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
processor.IS_ARM, processor.IS_X86 = True, False
processor.HALF_INSTRUCTIONS, processor.BFLOAT_INSTRUCTIONS = True, False
processor.host_features = dict
torch.set_num_threads(1)
# Debian's kernels let a process's memory be read by its parents alone.
ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)


def _machine() -> llvm.TargetMachine:
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    return target.create_target_machine(cpu=_NAME, opt=3, reloc="static")


def _machine_code(module: ir.Module, machine: llvm.TargetMachine) -> Code:
    (definition,) = (function for function in module.functions if not function.is_declaration)
    text = str(module).replace(f'@"{definition.name}"', '@"kernel"')
    program = _program(machine.emit_object(llvm.parse_assembly(text)))
    return functools.partial(_run, program)


def _program(code: bytes) -> Path:
    program = Path(_folder.name, hashlib.sha256(code).hexdigest()[:16])
    if not program.exists():
        kernel = program.with_suffix(".o")
        kernel.write_bytes(code)
        subprocess.run([_COMPILER, "-O1", "-static", _RUNNER, kernel, "-o", program], check=True)
    return program


def _run(program: Path, address: int) -> None:
    command = [_EMULATOR, "-cpu", _PROCESSORS[_NAME], program, str(os.getpid()), str(address)]
    subprocess.run(command, check=True)


codegen_compile.machine_code = _machine_code
processor.host_machine = _machine


def pytest_report_header() -> str:
    return f"kernels run on an emulated {_NAME}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name == "test_kernel_sequence":
            item.add_marker(pytest.mark.skip(reason="calls kernels from machine code"))
