"""MXFP4, NVFP4: 4-bit floats (E2M1) with a scale that is an 8-bit float.

Codes are twice the floats and scales halved, as in ggml, so that all codes are whole.
Source: ggml's ``dequantize_row_mxfp4`` and ``dequantize_row_nvfp4``.
"""

from __future__ import annotations

import numpy as np
from gguf import quants

from ascend_gguf.codegen import F32, I16, Value, table
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink

_BYTES = np.arange(256, dtype=np.uint8)


def _codes(q: Value) -> Value:
    """Twice the float with these four bits."""
    return q.lookup(quants.MXFP4.kvalues)


def mxfp4(x: Block, y: Sink) -> None:
    """``E8M0 d``, ``E2M1 q[32]``, low nibbles first: ``d q``."""
    scales = Block(table("e8m0", quants.MXFP4.e8m0_to_fp32_half(_BYTES)))
    d = scales.at(x.byte(0).zext(I16) * 4).read(F32, 0)
    q = x.bytes(1)
    for half in range(2):
        y.scaled(16 * half, _codes(q.field(4 * half, 4)), d, normal=False)


def nvfp4(x: Block, y: Sink) -> None:
    """``E4M3 d[4]``, ``E2M1 q[64]``: ``d q``, a scale for 16 weights, low nibbles first."""
    scales = Block(table("e4m3", quants.NVFP4.ue4m3_to_fp32(_BYTES).astype(np.float32)))
    for part in range(4):
        d = scales.at(x.byte(part).zext(I16) * 4).read(F32, 0)
        q = x.bytes(4 + 8 * part, 8)
        y.scaled(16 * part, _codes(q.field(0, 4).concat(q.field(4, 4))), d)
