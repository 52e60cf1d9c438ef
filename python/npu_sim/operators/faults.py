"""Ways to make the device wrong, as a release of CANN may be: NPU_SIM_FAULT names one."""

from __future__ import annotations

import os

VARIABLE = "NPU_SIM_FAULT"

#: Quantized products do not add offsets.
ANTIQUANT_OFFSET = "antiquant_offset"
#: Weights of experts are not made to sum to one.
TOP_K_RENORM = "top_k_renorm"


def has(fault: str) -> bool:
    return os.environ.get(VARIABLE) == fault
