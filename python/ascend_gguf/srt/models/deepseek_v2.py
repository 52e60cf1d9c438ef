"""The rotary embedding of DeepSeek's attention without YaRN."""

from __future__ import annotations

import math
from typing import Any


def as_yarn(config: Any) -> None:
    """Say plain and linear rotary embeddings in the words of the one that the engine knows.

    It takes any scaling for DeepSeek's YaRN, and has nothing but that on the CPU.  Without
    extrapolation and magnitudes all frequencies are divided by the factor.
    """
    parameters = config.rope_parameters
    if parameters["rope_type"] in ("default", "linear"):
        factor = parameters.get("factor", 1.0)
        config.rope_parameters = parameters | {
            "rope_type": "yarn",
            "factor": factor,
            # As many rows of sines as there are positions.
            "original_max_position_embeddings": math.ceil(config.max_position_embeddings / factor),
            "extrapolation_factor": 0.0,
            "mscale": 0.0,
            "mscale_all_dim": 0.0,
        }
