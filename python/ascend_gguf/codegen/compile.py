"""From a function of values to machine code that Python calls."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

from llvmlite import binding as llvm
from llvmlite import ir

import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen.backend import running
from ascend_gguf.codegen.kinds import I64, pointer
from ascend_gguf.codegen.llvm import LLVM
from ascend_gguf.codegen.threads import Code
from ascend_gguf.codegen.value import Value
from ascend_gguf.errors import GGUFError

_CODE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PRINT = "ASCEND_GGUF_PRINT_CODE"


def compiled(name: str, function: Callable[[Value], None]) -> Code:
    """A function of an address of whole numbers, for the processor this runs on."""
    return machine_code(traced(name, function), processor.host_machine())


def traced(name: str, function: Callable[[Value], None]) -> ir.Module:
    """A module of LLVM with one function."""
    module = ir.Module()
    backend = LLVM(module, name, pointer(I64))
    with running(backend):
        function(Value(backend.argument, pointer(I64)))
    backend.finish()
    return module


def machine_code(module: ir.Module, machine: llvm.TargetMachine) -> Code:
    """The one function of a module, which takes ``machine`` over."""
    (definition,) = (function for function in module.functions if not function.is_declaration)
    parsed = llvm.parse_assembly(str(module))
    _print(definition.name, parsed, machine)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    function = _CODE(engine.get_function_address(definition.name))
    function.engine = engine  # type: ignore[attr-defined]  # owns the code
    return function


def _print(name: str, module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """To standard error, if ``ASCEND_GGUF_PRINT_CODE`` is ``ir`` or ``asm``; docs/codegen.md."""
    form, _, part = os.environ.get(_PRINT, "").partition(":")
    if form not in ("", "ir", "asm"):
        raise GGUFError(
            f"invalid value of {_PRINT}",
            found=form,
            expected="ir or asm, then :NAME for the kernels with NAME in their name",
        )
    if form and part in name:
        text = str(module) if form == "ir" else machine.emit_assembly(module)
        print(text, file=sys.stderr, flush=True)
