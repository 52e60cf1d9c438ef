"""DeepSeek's attention: RoPE without YaRN, and prefill on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)

from ascend_gguf.srt.overrides import override_methods


def as_yarn(config: Any) -> None:
    """Express plain and linear RoPE as YaRN, the only one that the engine has here.

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


def repair_attention(attention: Any, config: Any) -> None:
    """``DeepseekV2AttentionMLA``: on the CPU, attend over latent vectors, always.

    For prompts the engine would expand them to keys and values, which its attention backend for
    the CPU does not read: it reads the cache, where the latent vectors are.
    """
    override_methods(attention, dispatch_attn_forward_method=_dispatch_attn_forward_method)


def _dispatch_attn_forward_method(
    original: Callable, self: Any, forward_batch: Any
) -> AttnForwardMethod:
    method = original(self, forward_batch)
    is_of_cpu = self.current_attention_backend == "torch_native"
    return AttnForwardMethod.MLA if is_of_cpu else method
