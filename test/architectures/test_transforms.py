"""What conversion to GGUF did to tensors, undone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ascend_gguf import BlockTensor, GGUFError, load_config, open_gguf
from ascend_gguf.architectures import architecture_of
from ascend_gguf.architectures.transforms import halves_from_pairs, minus_one
from hf_models import TINY, pairs_from_halves, write_model
from hf_models.writing import auto_config

CONFIG = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize(("heads", "count"), [("heads", 4), ("kv_heads", 2)])
def test_halves_from_pairs(heads, count):
    rows = torch.randn(count * 8, 64)
    stored = pairs_from_halves(rows, count)
    assert not torch.equal(stored, rows)
    assert torch.equal(halves_from_pairs(heads)(stored, CONFIG), rows)


def test_rows_of_blocks_move_as_rows_of_numbers():
    rows = torch.randn(32, 64)
    kind = gguf.GGMLQuantizationType.Q5_1
    blocks = torch.from_numpy(gguf.quantize(rows.numpy(), kind))
    numbers = torch.from_numpy(gguf.dequantize(blocks.numpy(), kind))
    undo = halves_from_pairs("heads")
    moved = BlockTensor(undo(blocks, CONFIG), kind).dequantize()
    assert torch.equal(moved, undo(numbers, CONFIG))


def test_biases_move_as_rows():
    bias = torch.randn(32)
    stored = pairs_from_halves(bias[:, None], 4)[:, 0]
    assert torch.equal(halves_from_pairs("heads")(stored, CONFIG), bias)


def test_minus_one():
    assert torch.equal(minus_one(torch.tensor([1.5, 0.5]), CONFIG), torch.tensor([0.5, -0.5]))


def _assert_agree(ours: object, made: object, where: str) -> None:
    if isinstance(made, dict):
        for key, value in made.items():
            # transformers writes that the whole of a head is turned, or leaves it out.
            if (key, value) != ("partial_rotary_factor", 1.0):
                _assert_agree(ours[key], value, f"{where}.{key}")
    else:
        assert ours == pytest.approx(made), where


@pytest.mark.parametrize("name", TINY)
def test_configuration_is_the_models(name, tiny_model):
    """What transformers computes with is what the model was made with."""
    model = tiny_model(name)
    ours = load_config(model.path).to_dict()
    made = auto_config().from_pretrained(model.hf).to_dict()
    if name == "olmo3":  # the engine's model of OLMo 2 knows that windows are not scaled
        made["rope_parameters"] = made["rope_parameters"]["full_attention"]
    if name == "mistral-4":  # in words of DeepSeek's; test_keys.py computes with them
        for key in ("llama_4_scaling_beta", "partial_rotary_factor"):
            del made["rope_parameters"][key]
    if name.startswith("gemma4"):  # transformers has those of layers with a window
        ours["num_key_value_heads"] = ours["swa_num_key_value_heads"]
    if name in ("dots1", "grok-1", "grok-2"):  # one of two classes has windows
        del made["layer_types"], made["sliding_window"]
    # Sparse attention takes a short context whole.
    if name in ("deepseek-v3.2", "glm-5", "hunyuan-4", "minimax-m3"):
        made.pop("layer_types", None)
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "layer_types",
        "sliding_window",
        "tie_word_embeddings",
        "vocab_size",
    ):
        if made.get(key) is not None:
            _assert_agree(ours[key], made[key], key)


def _with_factors(path: Path, factors: list[float]) -> Path:
    model = write_model(path, TINY["llama-3.1"])
    data = model.path.read_bytes()
    old = gguf.GGUFReader(model.path)
    stored = next(t for t in old.tensors if t.name == "rope_freqs.weight").data.tobytes()
    assert data.count(stored) == 1
    new = torch.tensor(factors, dtype=torch.float32).numpy().tobytes()
    model.path.write_bytes(data.replace(stored, new))
    return model.path


def test_factors_of_ones_scale_nothing(tmp_path):
    config = load_config(_with_factors(tmp_path, [1.0] * 32))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}


@pytest.mark.parametrize(
    "scaling",
    [
        {"original_max_position_embeddings": 64},
        # No wavelength is long enough for the whole factor, and none is between.
        {"original_max_position_embeddings": 60000, "factor": 16.0},
        {"original_max_position_embeddings": 512, "high_freq_factor": 1.01},
        {"low_freq_factor": 0.5, "high_freq_factor": 2.0, "rope_theta": 1e4, "factor": 32.0},
    ],
    ids=str,
)
def test_factors_as_llama3s_of_other_models(tmp_path, scaling):
    """transformers' frequencies are the model's, though other parameters may give them."""
    tiny = TINY["llama-3.1"]
    parameters = tiny.sizes["rope_parameters"] | scaling
    tiny = replace(tiny, sizes={**tiny.sizes, "rope_parameters": parameters})
    model = write_model(tmp_path, tiny)
    expected, found = (
        ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        for config in (auto_config().from_pretrained(model.hf), load_config(model.path))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "factors",
    [
        [1.0 + i for i in range(32)],
        [1.0] * 8 + [2.0] * 16 + [8.0] * 8,
        *([1.0] * 16 + [wrong] * 16 for wrong in (float("nan"), float("inf"), 0.0, -1.0)),
    ],
    ids=["line", "steps", "nan", "infinite", "zero", "negative"],
)
def test_factors_of_another_kind(tmp_path, factors):
    path = _with_factors(tmp_path, factors)
    with pytest.raises(GGUFError, match=r"not of Llama 3's kind.*config\.json") as error:
        load_config(path)
    assert error.value.tensor == "rope_freqs.weight"


def test_blocks_that_predict_further_tokens_are_left_out(tiny_model):
    path = tiny_model("glm4moe").path
    config = load_config(path)
    assert open_gguf(path).arch_field("block_count") == 3
    assert config.num_hidden_layers == 2
    names = architecture_of(open_gguf(path)).name_map(open_gguf(path), config)
    assert not [name for name in names if name.startswith("blk.2.")]


def test_a_dense_block_has_no_experts(tiny_model):
    """A tensor of a sparse block is unknown in a dense one."""
    path = tiny_model("glm4moe").path
    config = load_config(path)
    config.first_k_dense_replace = 2
    file = open_gguf(path)
    with pytest.raises(GGUFError, match="has no such tensor") as error:
        architecture_of(file).name_map(file, config)
    assert error.value.tensor.startswith("blk.1.")
