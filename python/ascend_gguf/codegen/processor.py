"""The processor that kernels are compiled for."""

from __future__ import annotations

import functools
import platform

from llvmlite import binding as llvm

IS_ARM = platform.machine() in ("aarch64", "arm64")
IS_X86 = platform.machine() in ("x86_64", "AMD64")


@functools.cache
def host_features() -> dict[str, bool]:
    """What this processor can and cannot do, in LLVM's words; nothing where LLVM cannot tell."""
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:
        return {}


#: Whether the processor converts float16 and bfloat16; elsewhere whole-number arithmetic does.
HALF_INSTRUCTIONS = IS_ARM or host_features().get("f16c", False)
BFLOAT_INSTRUCTIONS = llvm.llvm_version_info[0] >= 20 and host_features().get("avx512bf16", False)


def host_machine() -> llvm.TargetMachine:
    """The processor this runs on."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = ",".join(("+" if has else "-") + name for name, has in host_features().items())
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )
