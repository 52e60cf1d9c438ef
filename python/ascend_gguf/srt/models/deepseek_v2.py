"""The rotary embedding of DeepSeek's attention without YaRN."""

from __future__ import annotations

import math
from typing import Any


def as_yarn(config: Any) -> None:
    """Say plain and linear rotary embeddings in the words of the one that the engine knows.

    It takes any scaling for DeepSeek's YaRN, and has nothing but that on the CPU.  Without
    extrapolation, and with two magnitudes that cancel, all frequencies are divided by the factor;
    ``mscale_all_dim`` scales queries all the same.
    """
    parameters = config.rope_parameters
    if parameters["rope_type"] in ("default", "linear"):
        factor = parameters.get("factor", 1.0)
        magnitude = parameters.get("mscale_all_dim") or 0.0
        config.rope_parameters = parameters | {
            "rope_type": "yarn",
            "factor": factor,
            # As many rows of sines as there are positions.
            "original_max_position_embeddings": math.ceil(config.max_position_embeddings / factor),
            "extrapolation_factor": 0.0,
            "mscale": magnitude,
            "mscale_all_dim": magnitude,
        }
