"""What a user sets himself, as model cards write it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import AutoConfig

from ascend_gguf import GGUFError
from ascend_gguf.overrides import apply_overrides

YARN = {"factor": 4.0, "original_max_position_embeddings": 512}


def overridden(kind: str = "qwen3", overrides: dict[str, Any] | None = None, **sizes: Any):
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    sizes = {"max_position_embeddings": 2048, "rope_parameters": rope} | sizes
    config = AutoConfig.for_model(kind, **sizes)
    return config, apply_overrides(config, overrides or {})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rope_theta": 7.0}, {"rope_type": "default", "rope_theta": 7.0}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", **YARN}, "rope_theta": 7.0},
            {"rope_type": "yarn", "rope_theta": 7.0, **YARN},
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", **YARN}},
            {"rope_type": "yarn", "rope_theta": 5000.0, **YARN},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 2048,
            },
        ),
        ({"rope_parameters": {"rope_theta": 7.0}}, {"rope_type": "default", "rope_theta": 7.0}),
        (
            {"rope_parameters": {"full_attention": {"type": "linear", "factor": 3.0}}},
            {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0},
        ),
        (
            {"text_config": {"rope_theta": 7.0}, "vision_config": {}},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
    ],
    ids=str,
)
def test_the_rotary_embedding(overrides, expected):
    config, _ = overridden(overrides=overrides)
    assert config.rope_parameters == expected


def test_scaling_is_replaced():
    scaled = {"rope_type": "yarn", "rope_theta": 5000.0, **YARN, "attention_factor": 0.5}
    for off in ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default"}}):
        config, _ = overridden(rope_parameters=dict(scaled), overrides=off)
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5000.0}
    config, _ = overridden(rope_parameters=scaled, overrides={"rope_parameters": {"factor": 2.0}})
    assert config.rope_parameters["factor"] == 2.0
    # The engine's name of what the attention factor is more than the usual one.
    assert config.rope_parameters["attn_factor"] == 0.5 / (0.1 * math.log(2.0) + 1)


def test_layers_of_several_kinds():
    kinds = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }
    overrides = {
        "rope_theta": 7.0,
        "rope_local_base_freq": 9.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config, _ = overridden("gemma3_text", overrides, rope_parameters=kinds)
    assert config.rope_parameters == {
        "sliding_attention": {"rope_type": "default", "rope_theta": 9.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 7.0, "factor": 8.0},
    }
    one = {"rope_parameters": {"sliding_attention": {"rope_theta": 3.0}}}
    config, _ = overridden("gemma3_text", one, rope_parameters=kinds)
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 3.0
    assert config.rope_parameters["full_attention"]["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    "scaling",
    [{"factor": 4.0}, {"rope_type": "yarn"}, {"rope_type": "longrope", "factor": 4.0}],
    ids=str,
)
def test_impossible_scaling(scaling):
    with pytest.raises(GGUFError, match="--json-model-override-args") as error:
        overridden(overrides={"rope_scaling": scaling})
    assert "\n" not in str(error.value)


def test_other_attributes():
    overrides = {"num_experts_per_tok": 3, "max_position_embeddings": 9, "num_experts_per_token": 1}
    config, unknown = overridden("ernie4_5_moe", overrides)
    assert (config.moe_k, config.max_position_embeddings) == (3, 9)
    assert unknown == ["num_experts_per_token"]
