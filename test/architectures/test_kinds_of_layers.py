"""Metadata of architectures whose layers are of several kinds or sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from architectures.test_keys import BLOCKS, HYBRID, VALUES, identify, write
from ascend_gguf import GGUFError, load_config
from ascend_gguf.architectures import ARCHITECTURES
from rewrite import rewrite

(QWEN35,) = (a for a in ARCHITECTURES if a.name == "qwen35")
_FULL, _LINEAR = "full_attention", "linear_attention"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"full_attention_interval": 2}, [_LINEAR, _FULL] * 2),
        (
            {"attention.recurrent_layers": [True, True, False, True]},
            [_LINEAR] * 2 + [_FULL, _LINEAR],
        ),
        (
            {"attention.recurrent_layers": [False, True, True, False]},
            [_FULL, _LINEAR, _LINEAR, _FULL],
        ),
        # The list counts, where a file has both.
        (
            {"full_attention_interval": 4, "attention.recurrent_layers": [False] * 4},
            [_FULL] * 4,
        ),
        ({"attention.recurrent_layers": [True] * 4}, [_LINEAR] * 4),
    ],
    ids=str,
)
def test_layers_with_a_state(tmp_path, keys, expected):
    config = load_config(write(tmp_path / "m.gguf", QWEN35, **keys))
    assert config.layer_types == expected


def test_layers_by_their_tensors(tmp_path):
    """Files before the list have an interval, of four where the model had none."""
    path = write(tmp_path / "m.gguf", QWEN35, full_attention_interval=4)
    tensors = {0: "attn_k_norm.weight", 1: "ssm_a", 2: "ssm_a", 3: "attn_k_norm.weight"}
    rewrite(
        path,
        tmp_path / "l.gguf",
        tensors={f"blk.{i}.{name}": np.ones(8) for i, name in tensors.items()},
    )
    assert load_config(tmp_path / "l.gguf").layer_types == [_FULL, _LINEAR, _LINEAR, _FULL]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.recurrent_layers", [True, False], "of each layer"),
        ("attention.recurrent_layers", [2, 2, 2, 0], "of each layer"),
        ("rope.dimension_sections", [4, 2, 1, 1], "without positions"),
        ("rope.dimension_sections", [4, 2], "without positions"),
        ("ssm.inner_size", 130, "of such sizes"),
        ("ssm.group_count", 3, "of such sizes"),
    ],
    ids=str,
)
def test_linear_attention_that_the_engine_does_not_have(tmp_path, key, value, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", QWEN35, **{key: value}))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if a.name in HYBRID], ids=identify
)
def test_layers_without_keys(architecture, tmp_path):
    config = load_config(write(tmp_path / "m.gguf", architecture))
    # Latent vectors are those of all heads.
    is_latent = hasattr(config, "kv_lora_rank")
    assert config.num_key_value_heads == (config.num_attention_heads if is_latent else 2)
    assert [kind in ("full_attention", "attention") for kind in config.layer_types] == [
        False,
        True,
    ] * 2
    for heads in (2, [0] * 4, [2] * 4, [2, 3, 0, 0], [4, 4, 0, 0], [0, 2], [0.0, 2.0, 0.0, 2.0]):
        path = write(tmp_path / "m.gguf", architecture, **{"attention.head_count_kv": heads})
        with pytest.raises(GGUFError, match="layers with attention, of equal heads") as error:
            load_config(path)
        assert len(str(error.value).splitlines()) == 1


(GRANITE4, _) = (a for a in ARCHITECTURES if a.name == "granitehybrid")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ssm.inner_size", 100, "Mamba-2 cannot be of such sizes"),
        ("ssm.time_step_rank", 5, "Mamba-2 cannot be of such sizes"),
        ("ssm.group_count", 3, "Mamba-2 cannot be of such sizes"),
        ("rope.scaling.finetuned", None, "lacks"),
    ],
    ids=str,
)
def test_mamba_that_the_engine_does_not_have(tmp_path, key, value, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", GRANITE4, **{key: value}))
    assert len(str(error.value).splitlines()) == 1


NEMOTRON, NEMOTRON_MOE = (a for a in ARCHITECTURES if a.name in BLOCKS)


def test_blocks_of_one_thing_each(tmp_path):
    for architecture, expected in ((NEMOTRON, "M*-M"), (NEMOTRON_MOE, "M*EM")):
        config = load_config(write(tmp_path / "m.gguf", architecture))
        assert config.hybrid_override_pattern == expected
        assert config.layer_norm_epsilon == VALUES["attention.layer_norm_rms_epsilon"]
    keys = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 0.25}
    config = load_config(write(tmp_path / "m.gguf", NEMOTRON, **keys))
    assert config.layer_norm_epsilon == 0.25


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.head_count_kv", [0, 2, 2, 0], "of one thing each"),
        ("attention.head_count_kv", [0] * 4, "of Mamba-2 and of attention"),
        ("attention.head_count_kv", [0, 4, 0, 0], "of one thing each"),
        ("attention.head_count_kv", 2, "one value for each block"),
        ("feed_forward_length", [0, 0, 192, 96], "one value for each block"),
        ("feed_forward_length", [192, 0, 192, 192], "of Mamba-2 and of attention"),
        ("ssm.inner_size", 66, "Mamba-2 cannot be of such sizes"),
    ],
    ids=str,
)
def test_blocks_that_the_engine_does_not_have(tmp_path, key, value, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", NEMOTRON, **{key: value}))
    assert len(str(error.value).splitlines()) == 1


(GEMMA4,) = (a for a in ARCHITECTURES if a.name == "gemma4")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"attention.head_count_kv": [3, 3, 3, 2], "attention.key_length_swa": 8},
            {"num_key_value_heads": 2, "swa_num_key_value_heads": 3, "swa_head_dim": 8}
            | {"head_dim": 16, "use_double_wide_mlp": False},
        ),
        (
            {"attention.sliding_window_pattern": [True, False, True, False]}
            | {"attention.shared_kv_layers": 2, "feed_forward_length": [192, 192, 384, 384]},
            {"num_kv_shared_layers": 2, "intermediate_size": 192, "use_double_wide_mlp": True},
        ),
    ],
    ids=["heads", "shared"],
)
def test_layers_of_two_sizes(tmp_path, keys, expected):
    keys |= {"attention.value_length_swa": keys.get("attention.key_length_swa")}
    config = load_config(write(tmp_path / "m.gguf", GEMMA4, **keys)).to_dict()
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.sliding_window_pattern": [True] * 4}, "cannot attend so"),
        ({"attention.shared_kv_layers": 1}, "cannot attend so"),
        ({"attention.head_count_kv": [3, 2, 3, 2]}, "cannot be shared so"),
        ({"attention.head_count_kv": [4, 4, 4, 2]}, "is not a multiple"),
        ({"attention.head_count_kv": [3, 3]}, "invalid values"),
        ({"feed_forward_length": [192, 192, 192, 384]}, "the widths differ"),
        ({"rope.dimension_count_swa": 8}, "does not support this value"),
        ({"attention.value_length_swa": 8}, "does not support this value"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "scales no frequencies"),
    ],
    ids=str,
)
def test_layers_that_the_engine_does_not_have(tmp_path, keys, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", GEMMA4, **keys))
    assert len(str(error.value).splitlines()) == 1


(GEMMA3N,) = (a for a in ARCHITECTURES if a.name == "gemma3n")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.shared_kv_layers": 4}, "cannot attend so"),
        (
            {"attention.sliding_window_pattern": [True, True, True, False]}
            | {"attention.shared_kv_layers": 1},
            "cannot attend so",
        ),
        ({"activation_sparsity_scale": [1.0, 1.0]}, "invalid values"),
        ({"activation_sparsity_scale": [1, 1, 1, 1]}, "invalid values"),
        ({"activation_sparsity_scale": [math.nan] * 4}, "invalid values"),
        ({"altup.active_idx": 4}, "out of range"),
        ({"embedding_length_per_layer_input": 0}, "invalid value"),
        ({"feed_forward_length": [192, 192, 192, 96]}, "differs between layers"),
    ],
    ids=str,
)
def test_streams_that_the_engine_does_not_have(tmp_path, keys, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", GEMMA3N, **keys))
    assert len(str(error.value).splitlines()) == 1


(DECI,) = (a for a in ARCHITECTURES if a.name == "deci")


def test_sizes_of_each_layer(tmp_path):
    own = {
        "attention.head_count": [6, 0, 6, 6],
        "attention.head_count_kv": [2, 0, 0, 3],
        "feed_forward_length": [192, 0, 96, 48],
    }
    config = load_config(write(tmp_path / "m.gguf", DECI, **own))
    found = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    assert found == (6, 3, 192) == tuple(map(max, own.values()))
    assert sorted(config.sizes_by_layer.values()) == sorted(own.values())
    assert not hasattr(load_config(write(tmp_path / "m.gguf", DECI)), "sizes_by_layer")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.head_count_kv": [0] * 4}, "not a multiple"),
        ({"attention.head_count_kv": [2, 2, 4, 2]}, "not a multiple"),
        ({"attention.head_count": [6, 6, 0, 6]}, "not a multiple"),
        ({"attention.head_count": [6, 6, 2, 6]}, "as many query heads"),
        ({"feed_forward_length": [192, 192]}, "invalid values"),
        ({"feed_forward_length": [192.0] * 4}, "invalid values"),
        ({"feed_forward_length": [192, -1, 192, 192]}, "invalid values"),
    ],
    ids=str,
)
def test_sizes_that_no_layer_can_have(tmp_path, keys, message):
    with pytest.raises(GGUFError, match=message) as error:
        load_config(write(tmp_path / "m.gguf", DECI, **keys))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("architecture", ["glm4", "laguna", "mimo2", "phi2", "qwen35", "spark2_5"])
@pytest.mark.parametrize("rotated", [21, 1024])
def test_numbers_of_a_head_that_rope_cannot_rotate(tmp_path, architecture, rotated):
    found = next(a for a in ARCHITECTURES if a.name == architecture)
    path = write(tmp_path / "m.gguf", found, **{"rope.dimension_count": rotated})
    with pytest.raises(GGUFError, match=r"rope\.dimension_count.*an even number up to"):
        load_config(path)
