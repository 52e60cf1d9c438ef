"""The language that kernels are written in.

A kernel is a Python function of values (:mod:`.value`): whole numbers, floats and addresses.  It is
compiled by LLVM, and interpreted by NumPy, which says what it means.  docs/codegen.md shows one.
"""

# ruff: noqa: F401

from ascend_gguf.codegen import processor
from ascend_gguf.codegen.control import fold, loop, minimum, switch, tile_loop, when
from ascend_gguf.codegen.kernel import Kernel
from ascend_gguf.codegen.kinds import (
    BF16,
    F16,
    F32,
    FLOATS,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    REST,
    Kind,
    pointer,
    rows,
)
from ascend_gguf.codegen.lookup import lookup_words
from ascend_gguf.codegen.math import (
    add_pairs,
    exp,
    exp2,
    halved,
    max_of,
    maximum,
    multiply_add,
    sigmoid,
    softplus,
    sqrt,
    sum_of,
)
from ascend_gguf.codegen.memory import (
    Rows,
    canonical_half,
    load,
    local,
    prefetch,
    rounded,
    store,
    table,
    widened,
)
from ascend_gguf.codegen.value import Value, collect, shuffle, splat, transposed
