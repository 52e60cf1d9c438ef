"""From a module of LLVM to a function that Python calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from llvmlite import binding as llvm
from llvmlite import ir

from ascend_gguf.codegen.vectors import host_features


def host_machine() -> llvm.TargetMachine:
    """The processor this runs on."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = ",".join(("+" if has else "-") + name for name, has in host_features().items())
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )


def compiled(module: ir.Module, machine: llvm.TargetMachine) -> Callable[..., None]:
    """The one function of a module, which takes ``machine`` over.

    Pointers and whole numbers are passed as Python numbers.
    """
    (definition,) = (function for function in module.functions if not function.is_declaration)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    kinds = {True: ctypes.c_void_p, False: ctypes.c_ssize_t}
    prototype = ctypes.CFUNCTYPE(None, *(kinds[a.type.is_pointer] for a in definition.args))
    function = prototype(engine.get_function_address(definition.name))
    function.engine = engine  # type: ignore[attr-defined]  # owns the code
    return function


def compiled_kernel(module: ir.Module) -> Callable[[int], None]:
    """The kernel of a module, for the processor this runs on."""
    return compiled(module, host_machine())
