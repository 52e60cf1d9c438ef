"""The KV cache and the recurrent states of a model before it is loaded."""

from __future__ import annotations

from typing import Any

from ascend_gguf.architectures.dimensions import cached_heads, first, size
from ascend_gguf.desk.weights import Ranks, itemsize, layers_of_stages

#: Types of layers with a state for each request, and those with nothing for each token.
_STATES = ("linear_attention", "mamba", "conv", "M")
_WITHOUT_KEYS = (*_STATES, "-", "E")


def cache_bytes(config: Any, ranks: Ranks, dtype: str, on_npu: bool = False) -> tuple[int, int]:
    """Bytes of the KV cache for a token, and of the states of a request, on the fullest rank."""
    kinds = first(config, "hybrid_override_pattern", "layer_types", default=())
    if config.model_type == "mamba2":
        kinds = "M" * config.num_hidden_layers
    is_both = not kinds and first(config, "mamba_n_heads") is not None  # Falcon-H1
    stages = layers_of_stages(config, ranks.pp)
    states = max(sum(is_both or bool(kinds) and kinds[i] in _STATES for i in one) for one in stages)
    numbers = max(
        sum(
            _numbers(config, i, ranks.tp, on_npu)
            for i in one
            if not kinds or kinds[i] not in _WITHOUT_KEYS
        )
        for one in stages
    )
    state = _state_bytes(config, ranks.tp, dtype) if states else 0
    return numbers * itemsize(dtype), states * state


def _numbers(config: Any, layer: int, tp: int, on_npu: bool) -> int:
    """What a layer keeps of a token: numbers of its keys and values."""
    if getattr(config, "kv_lora_rank", None):
        return size("kv_lora+rope", config)
    heads, key, value = cached_heads(config, layer, on_npu)
    return max(1, heads // tp) * (key + value) * first(config, "num_loops", default=1)


def _state_bytes(config: Any, tp: int, dtype: str) -> int:
    """Of one layer of a request: the last inputs of the convolution, and a float32 state.

    Source: the engine's ``Mamba2StateShape.create``.
    """
    if first(config, "linear_num_key_heads"):
        sizes = ("linear_v", config.linear_num_key_heads, config.linear_key_head_dim, "conv")
    elif first(config, "conv_L_cache"):
        sizes = ("hidden", 1, 0, "conv")
    else:
        state = first(config, "mamba_d_state", "ssm_state_size", "state_size")
        sizes = ("ssm_inner", size("ssm_groups", config), state, "ssm_kernel")
    inner, groups, state, kernel = (size(str(one), config) for one in sizes)
    groups = groups if groups % tp == 0 else tp
    convolution = (inner + 2 * groups * state) // tp * (kernel - 1)
    return convolution * itemsize(dtype) + inner // tp * state * 4
