"""MiMo-V2-Flash: RoPE by the type of a layer, and exact sinks."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.rotary import set_rotary_of_type


def name_sizes(config: Any) -> None:
    """RoPE is repaired afterwards: until then it is plain."""
    config.rope_parameters = {"rope_type": "default", **config.rope_parameters}


def repair_attention(attention: Any, config: Any) -> None:
    """``MiMoV2Attention``: RoPE of its type of layer; sinks are float32, as in the file."""
    set_rotary_of_type(attention, config)
    if attention.attention_sink_bias is not None:
        attention.attention_sink_bias.data = attention.attention_sink_bias.data.float()
