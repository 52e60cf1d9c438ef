"""OpenAI's gpt-oss."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import required
from ascend_gguf.architectures.layers import sliding_unless
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS_AROUND_ATTENTION,
    OPTIONAL_WIDTH,
    WINDOW,
    attention,
    expert_fields,
    experts,
)
from ascend_gguf.reader import GGUFFile

_EXPERT_FIELDS = expert_fields("num_local_experts", width="intermediate_size")
_BIAS = "mlp.experts.{expert}"


def _untruncated(file: GGUFFile, attributes: Attributes) -> Attributes:
    # The bounds of the frequencies that YaRN scales are not rounded.
    return rope.parameters(file, attributes) | {"truncate": False}


ARCHITECTURES = (
    Architecture(
        name="gpt-oss",
        model_type="gpt_oss",
        fields=FIELDS | OPTIONAL_WIDTH | HEAD_SIZE | _EXPERT_FIELDS | required(WINDOW),
        fixed={"expert_gating_func": (3,)},
        tensors=(
            *FRAME,
            *NORMS_AROUND_ATTENTION,
            *attention(biased=True, output_biased=True),
            per_layer("attn_sinks.weight", "heads", "self_attn.sinks"),
            *experts(router="router.weight"),
            per_layer("ffn_gate_inp.bias", "experts", "mlp.router.bias"),
            per_layer("ffn_gate_exps.bias", "experts expert_ffn", f"{_BIAS}.gate_proj.bias"),
            per_layer("ffn_up_exps.bias", "experts expert_ffn", f"{_BIAS}.up_proj.bias"),
            per_layer("ffn_down_exps.bias", "experts hidden", f"{_BIAS}.down_proj.bias"),
        ),
        rope=_untruncated,
        derived=(sliding_unless(2),),
    ),
)
