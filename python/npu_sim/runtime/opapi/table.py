"""Generates the assembly of libopapi.so: one symbol for every aclnn operator that torch_npu knows.

Each ``aclnn<Name>GetWorkspaceSize`` jumps through its own slot of a table without touching the
arguments, so Python can supply functions of any signature; every ``aclnn<Name>`` is the one launch
function.  All names the wheel can look up exist, as in a CANN as new as the wheel: torch_npu picks
between versions of an operator by which symbols exist, and falls back to other code where none
does, so a symbol that is merely not modelled must exist and refuse by name.
"""

from __future__ import annotations

import re
from pathlib import Path

SUFFIXES = ("GetWorkspaceSize", "GetMaxWorkspaceSize")
TABLE = "npu_sim_aclnn_table"


def operator_names(torch_npu: Path) -> list[str]:
    """Names of the aclnn operators in the wheel's libraries, sorted."""
    names = set()
    pattern = re.compile(
        rb"(?<![A-Za-z0-9_])(aclnn[A-Za-z0-9_]+?)Get(?:Max)?WorkspaceSize(?![A-Za-z0-9_])"
    )
    for library in sorted((torch_npu / "lib").glob("*.so")):
        names.update(m.decode() for m in pattern.findall(library.read_bytes()))
    return sorted(names)


def assembly(names: list[str]) -> str:
    """x86-64 source with the symbols of ``names``; slot i belongs to names[i]."""
    lines = [".text"]
    for slot, name in enumerate(names):
        for suffix in SUFFIXES:
            symbol = name + suffix
            # r11 is scratch between caller and callee, so no argument is disturbed.
            # The slot of the second suffix is in the table's upper half.
            offset = 8 * (slot + len(names) * SUFFIXES.index(suffix))
            lines += [
                f".globl {symbol}",
                f".type {symbol}, @function",
                f"{symbol}:",
                f"  movq {TABLE}@GOTPCREL(%rip), %r11",
                f"  jmp *{offset}(%r11)",
            ]
        lines += [
            f".globl {name}",
            f".type {name}, @function",
            f"{name}:",
            "  jmp npu_sim_aclnn_launch@PLT",
        ]
    size = 8 * len(names) * len(SUFFIXES)
    lines += [
        ".bss",
        f".globl {TABLE}",
        f".type {TABLE}, @object",
        f".size {TABLE}, {size}",
        ".balign 8",
        f"{TABLE}: .zero {size}",
        ".section .note.GNU-stack",
    ]
    return "\n".join(lines) + "\n"
