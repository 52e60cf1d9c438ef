"""MXFP4, NVFP4: 4-bit floats (E2M1) with a scale that is an 8-bit float.

Numbers are kept doubled and scales halved, as in ggml, so that all numbers are whole.
Source: ggml's ``dequantize_row_mxfp4`` and ``dequantize_row_nvfp4``.
"""

from __future__ import annotations

import numpy as np
from gguf import quants

from ascend_gguf.codegen.vectors import Bytes, Vector
from ascend_gguf.decoders.sink import Target

_BYTES = np.arange(256, dtype=np.uint8)


def _numbers(q: Vector) -> Vector:
    """Twice the number with these four bits."""
    return q.looked_up(quants.MXFP4.kvalues)


def mxfp4(x: Bytes, y: Target) -> None:
    """``E8M0 d``, ``E2M1 q[32]``, low nibbles first: ``d q``."""
    scales = x.table("e8m0", quants.MXFP4.e8m0_to_fp32_half(_BYTES))
    d = scales.at(x.byte(0).widened(16) * 4).word(0, 32).as_floats()
    q = x.bytes(1)
    for half in range(2):
        y.scaled(16 * half, _numbers(q.field(4 * half, 4)), d, usual=False)


def nvfp4(x: Bytes, y: Target) -> None:
    """``E4M3 d[4]``, ``E2M1 q[64]``: ``d q``, a scale for 16 weights, low nibbles first."""
    scales = x.table("e4m3", quants.NVFP4.ue4m3_to_fp32(_BYTES).astype(np.float32))
    for part in range(4):
        d = scales.at(x.byte(part).widened(16) * 4).word(0, 32).as_floats()
        q = x.bytes(4 + 8 * part, 8)
        y.scaled(16 * part, _numbers(q.field(0, 4).then(q.field(4, 4))), d)
