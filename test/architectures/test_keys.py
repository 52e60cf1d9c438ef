"""Metadata of every architecture: what a file may leave out, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ascend_gguf import GGUFError, load_config
from ascend_gguf.architectures import ARCHITECTURES, Architecture, Field, rope
from ascend_gguf.architectures.keys import _DERIVED, _NEUTRAL, _ROUTING
from rewrite import add, finish

#: Sizes that any architecture of the table can have; a file has those that it obeys.
VALUES: dict[str, Any] = {
    "block_count": 4,
    "context_length": 16384,
    "embedding_length": 96,
    "feed_forward_length": 192,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "attention.layer_norm_rms_epsilon": 0.03125,
    "attention.layer_norm_epsilon": 0.03125,
    "attention.sliding_window": 64,
    "attention.kv_lora_rank": 32,
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 16,
    "attention.indexer.top_k": 64,
    "attention.indexer.block_size": 16,
    "hyper_connection.count": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.magnitude": 2.0,
    "rope.dimension_count": 16,
    "logit_scale": 0.5,
    "attention.key_length_swa": 16,
    "shortconv.l_cache": 3,
    "kda.head_dim": 16,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
    "rope.scaling.finetuned": True,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 48,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 192,
    "expert_gating_func": 2,
    "interleave_moe_layer_step": 1,
    "leading_dense_block_count": 1,
}
#: Whose layers without attention have no KV heads.
HYBRID = ("granitehybrid", "kimi-linear", "lfm2", "lfm2moe")
#: Whose blocks are of one thing each.
BLOCKS = ("nemotron_h", "nemotron_h_moe")
_LATENT = {"attention.key_length": 24}  # more than the rotary embedding turns


def identify(architecture: Architecture) -> str:
    return f"{architecture.name}-{architecture.model_type}"


EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=identify)


def sizes(architecture: Architecture) -> dict[str, Any]:
    """What a file of the architecture has to say, and what tells it from others of the name."""
    known = architecture.obeyed | {"attention.value_length", *architecture.fixed}
    if architecture.name == "mamba2":
        known -= {"attention.value_length"}
    found = {key: value for key, value in VALUES.items() if key in known}
    if "attention.kv_lora_rank" in known:
        found |= _LATENT
    for key, values in architecture.fixed.items():
        if key in VALUES:
            found[key] = values[0]
    if architecture.name == "llama4":
        found["expert_shared_feed_forward_length"] = None
    if architecture.name in ("hy_v4", "minicpm3"):
        found["attention.q_lora_rank"] = 32
    if architecture.name in ("gpt2", "olmo", "phi2", "starcoder", "minicpm3"):
        found["attention.head_count_kv"] = VALUES["attention.head_count"]
    if architecture.name in HYBRID:
        found["attention.head_count_kv"] = [0, 2, 0, 2]
    if architecture.name in (*HYBRID, "mamba2") and "ssm.inner_size" in found:
        found["ssm.inner_size"] = 2 * VALUES["embedding_length"]
    if architecture.name in BLOCKS:
        found["attention.head_count_kv"] = [0, 2, 0, 0]
        found["feed_forward_length"] = [0, 0, 192, 0]
    if architecture.name == "gemma4":  # the last layer has no window
        found["attention.sliding_window_pattern"] = [True, True, True, False]
    return found


def write(path: Path, architecture: Architecture, **changes: Any) -> Path:
    """A file of metadata and an embedding; ``changes`` are keys, None removes one."""
    writer = gguf.GGUFWriter(path, architecture.name)
    for key, value in (sizes(architecture) | changes).items():
        add(writer, f"{architecture.name}.{key}", value)
    if architecture.name == "apertus":
        for name in ("alpha_n", "alpha_p", "beta", "eps"):
            add(writer, f"xielu.{name}", 0.5)
    writer.add_tensor("token_embd.weight", np.zeros((56, VALUES["embedding_length"]), np.float32))
    finish(writer)
    return path


def another(value: Any) -> Any:
    """A value that is not the neutral one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "relu"
    return value + 3 if isinstance(value, int) else value * 2


def unfollowed(architecture: Architecture) -> list[str]:
    """Keys of llama.cpp that the architecture does not obey."""
    keys = {*_NEUTRAL, *_DERIVED, *architecture.fixed} - architecture.obeyed
    for other in ARCHITECTURES:
        if other.name == architecture.name:
            keys -= other.obeyed  # it would tell the file to be of the other kind
    keys -= {key for key, values in architecture.fixed.items() if set(values) == {False, True}}
    dense = "expert_count" not in architecture.fields
    if architecture.rope is rope.absent:
        keys = {key for key in keys if not key.startswith("rope.") or key in architecture.fixed}
    return sorted(k for k in keys if not (dense and k.startswith(_ROUTING)) or k == "expert_count")


@EVERY_ARCHITECTURE
def test_what_is_not_followed_is_refused_by_name(architecture, tmp_path):
    load_config(write(tmp_path / "model.gguf", architecture))
    for key in unfollowed(architecture):
        allowed = architecture.fixed.get(key) or _NEUTRAL.get(key) or (16,)
        path = write(tmp_path / "m.gguf", architecture, **{key: another(allowed[-1])})
        with pytest.raises(GGUFError, match="does not support this value") as error:
            load_config(path)
        assert error.value.key == f"{architecture.name}.{key}", key
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["gemma3", "granite_swa", "mellum", "olmo2"])
def test_a_window_of_one_token_is_refused(name, tmp_path):
    (architecture, *_) = (a for a in ARCHITECTURES if a.name == name)
    path = write(tmp_path / "m.gguf", architecture, **{"attention.sliding_window": 1})
    with pytest.raises(GGUFError, match="does not support this value of the key") as error:
        load_config(path)
    assert error.value.key == f"{name}.attention.sliding_window"


@pytest.mark.parametrize("heads", [0, [0] * VALUES["block_count"]])
def test_a_model_in_which_no_layer_attends_is_refused(heads, tmp_path):
    (architecture,) = (a for a in ARCHITECTURES if a.name == "deci")
    path = write(tmp_path / "m.gguf", architecture, **{"attention.head_count": heads})
    with pytest.raises(GGUFError, match="heads in at least one layer") as error:
        load_config(path)
    assert error.value.key == "deci.attention.head_count"


def test_more_loops_than_llama_cpp_has_are_refused(tmp_path):
    (architecture,) = (a for a in ARCHITECTURES if a.name == "nanbeige")
    layers = load_config(write(tmp_path / "m.gguf", architecture)).num_hidden_layers
    assert load_config(write(tmp_path / "m.gguf", architecture, num_loops=512 // layers))
    with pytest.raises(GGUFError, match=f"value out of range.*at most {512 // layers}") as error:
        load_config(write(tmp_path / "m.gguf", architecture, num_loops=512 // layers + 1))
    assert error.value.key == "nanbeige.num_loops"


@EVERY_ARCHITECTURE
def test_what_says_nothing_changes_nothing(architecture, tmp_path):
    alone = load_config(write(tmp_path / "m.gguf", architecture)).to_dict()
    for place in (0, -1):
        keys = {
            key: (architecture.fixed.get(key) or _NEUTRAL[key])[place]
            for key in set(unfollowed(architecture)) - set(_DERIVED)
        }
        assert load_config(write(tmp_path / "m.gguf", architecture, **keys)).to_dict() == alone


#: Keys of published files that say nothing of their models: the values llama.cpp takes then.
LACKING: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "gemma2": (
        ("attention.sliding_window",),
        {
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": (
        ("attention.sliding_window",),
        {"final_logit_softcapping": None, "layer_types": ["full_attention"] * 4},
    ),
    "gemma3n": (
        (),
        {
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 4,
            "altup_active_idx": 0,
            "hidden_size_per_layer_input": 256,
            "final_logit_softcapping": 30.0,
            "activation_sparsity_pattern": [0.95] * 4,
        },
    ),
    "gemma4": (
        ("attention.key_length_swa", "expert_count", "expert_used_count"),
        {
            "swa_head_dim": 16,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "final_logit_softcapping": None,
            "enable_moe_block": False,
        },
    ),
    "granite": (
        (),
        {"attention_multiplier": 0.25, "embedding_multiplier": 1.0, "residual_multiplier": 1.0},
    ),
    "granitemoe": (
        (),
        {"attention_multiplier": 0.25, "embedding_multiplier": 1.0, "residual_multiplier": 1.0},
    ),
    "command-r": (("logit_scale",), {"logit_scale": 1.0}),
    "glm4": (("rope.dimension_count",), {"partial_rotary_factor": 1.0}),
    "glm4moe": (
        ("rope.dimension_count", "leading_dense_block_count", "expert_gating_func"),
        {
            "partial_rotary_factor": 1.0,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "num_nextn_predict_layers": 0,
        },
    ),
    "bailingmoe2": (
        ("leading_dense_block_count", "expert_shared_feed_forward_length"),
        {
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "moe_shared_expert_intermediate_size": 48,
        },
    ),
    "deepseek2": (
        ("leading_dense_block_count",),
        {
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
        },
    ),
    "ernie4_5-moe": (
        ("leading_dense_block_count", "expert_shared_count"),
        {"moe_layer_start_index": 0, "moe_num_shared_experts": 4},
    ),
    "hunyuan-moe": (
        ("expert_shared_feed_forward_length",),
        {"shared_expert_intermediate_size": 192, "num_shared_expert": 1},
    ),
    "minimax-m2": (("rope.dimension_count", "expert_gating_func"), {"rotary_dim": 16}),
    "phi3": (("attention.sliding_window",), {"sliding_window": None}),
    "exaone4": (("attention.sliding_window",), {"sliding_window": None}),
    "qwen2moe": (
        ("expert_feed_forward_length", "expert_shared_feed_forward_length"),
        {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 192},
    ),
    "qwen35": (
        ("rope.dimension_count",),
        {
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "full_attention_interval": 4,
            "partial_rotary_factor": 1.0,
        },
    ),
    "qwen35moe": (
        ("expert_feed_forward_length", "expert_shared_feed_forward_length"),
        {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 192},
    ),
    "qwen3next": (
        ("expert_feed_forward_length", "expert_shared_feed_forward_length", "rope.dimension_count"),
        {
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 192,
            "partial_rotary_factor": 1.0,
        },
    ),
    "qwen3moe": (("expert_feed_forward_length",), {"moe_intermediate_size": 96}),
    # An older model, which attends to everything.
    "hy_v4": (
        tuple(f"attention.indexer.{name}" for name in ("head_count", "key_length", "top_k"))
        + ("leading_dense_block_count",),
        {
            "sparse_attention_size": None,
            "swiglu_limit": 0.0,
            "mlp_layer_types": ["sparse"] * 4,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
        },
    ),
}


@EVERY_ARCHITECTURE
def test_what_a_file_does_not_say(architecture, tmp_path):
    """llama.cpp's ``load_arch_hparams``, where transformers' defaults are those of one model."""
    lacking, expected = LACKING.get(architecture.name, ((), {}))
    if architecture.name == "deepseek2" and "expert_count" not in architecture.fields:
        expected = {"q_lora_rank": None}  # has no experts, and nothing to say of them
    unset = [
        key
        for key, field in architecture.fields.items()
        if isinstance(field, Field) and field.unset is not None and not field.required
    ]
    neither = dict.fromkeys(lacking)
    zero = neither | {k: 0 if architecture.fields[k].kind is int else 0.0 for k in unset}
    if architecture.name == "olmo2":
        zero = {}  # no window is another model's
    for keys in (neither, zero):
        config = load_config(write(tmp_path / "m.gguf", architecture, **keys)).to_dict()
        assert {name: config[name] for name in expected} == expected


def _grouped(path: Path, count: int, used: int, chosen: int) -> Path:
    keys = {"expert_group_count": count, "expert_group_used_count": used}
    (glm,) = (a for a in ARCHITECTURES if a.name == "glm4moe")
    return write(path, glm, **keys, expert_used_count=chosen)


@pytest.mark.parametrize(
    ("count", "used", "chosen"), [(3, 1, 2), (2, 3, 2), (8, 4, 2), (4, 1, 3)], ids=str
)
def test_groups_that_experts_cannot_be_chosen_in(tmp_path, count, used, chosen):
    with pytest.raises(GGUFError, match=r"invalid groups of experts \(found .* 8 experts"):
        load_config(_grouped(tmp_path / "m.gguf", count, used, chosen))


def test_experts_of_all_layers_are_clamped_alike(tmp_path):
    (hunyuan,) = (a for a in ARCHITECTURES if a.name == "hy_v4")
    clamps = {"swiglu_clamp_exp": [9.0, 0.5, 0.5, 0.5]}  # the first layer has no experts
    assert load_config(write(tmp_path / "m.gguf", hunyuan, **clamps)).swiglu_limit == 0.5
    clamps["swiglu_clamp_exp"][3] = 0.25
    with pytest.raises(GGUFError, match="clamps the experts of all layers alike") as error:
        load_config(write(tmp_path / "m.gguf", hunyuan, **clamps))
    assert error.value.key == "hy_v4.swiglu_clamp_exp"


def test_all_groups_are_one(tmp_path):
    config = load_config(_grouped(tmp_path / "m.gguf", 4, 4, 3))
    assert (config.n_group, config.topk_group) == (1, 1)
