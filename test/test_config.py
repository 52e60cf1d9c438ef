"""The configuration of a model: everything in it comes from the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from ascend_gguf import GGUFError, load_config, load_tokenizer
from ascend_gguf.architectures import ARCHITECTURES as TABLE
from ascend_gguf.architectures.fields import as_field
from random_model import NAMES, Spec, write_model
from rewrite import add, finish, rewrite

#: Those that :class:`Spec` can write, by name.
ARCHITECTURES = {a.name: a for a in TABLE if a.name in NAMES}

EVERY_ARCHITECTURE = pytest.mark.parametrize("arch", ARCHITECTURES)

#: What a qwen3moe file says of itself; the keys of other architectures are a subset.
FIELDS: dict[str, Any] = {
    "block_count": 3,
    "context_length": 777,
    "embedding_length": 96,
    "feed_forward_length": 352,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 0.03125,
    "attention.key_length": 40,
    "attention.value_length": 40,
    "expert_count": 7,
    "expert_used_count": 3,
    "expert_feed_forward_length": 72,
    "expert_shared_feed_forward_length": 88,
    "rope.freq_base": 123456.0,
}
VOCABULARY = 56

#: Keys of :data:`FIELDS` that files of an architecture do not have.
ABSENT = {
    "qwen2": ("expert_",),
    "qwen3": ("expert_",),
    "qwen2moe": ("attention.key_length", "attention.value_length"),
    "qwen3moe": ("expert_shared",),
}

MODEL = Path(__file__).with_name("data") / "qwen3-dense-Q4_K_M.gguf"


def write(path: Path, arch: str = "qwen3moe", tied: bool = False, **changes: Any) -> Path:
    """A file of metadata and the matrices a configuration depends on.

    ``changes`` are fields, ``__`` for their dots; None removes one.  A name that starts with
    ``tokenizer`` stands for itself.
    """
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    writer = gguf.GGUFWriter(path, arch)
    fields = {key: value for key, value in FIELDS.items() if not key.startswith(ABSENT[arch])}
    for name, value in (fields | changed).items():
        key = name if name.startswith("tokenizer.") else f"{arch}.{name}"
        add(writer, key, value)
    for name in ("token_embd.weight",) + ("output.weight",) * (not tied):
        writer.add_tensor(name, np.zeros((VOCABULARY, FIELDS["embedding_length"]), np.float32))
    finish(writer)
    return path


#: Attributes that the file says nothing of, or that only say where a configuration comes from.
_NOT_IN_THE_FILE = {"architectures", "dtype", "transformers_version", "_name_or_path"}


def assert_is(config: Any, model_type: str, **expected: Any) -> None:
    """``config`` is what transformers makes of ``expected``, attribute by attribute."""
    explicit = AutoConfig.for_model(model_type, **expected)
    assert type(config) is type(explicit)
    ours, theirs = config.to_dict(), explicit.to_dict()
    for key in _NOT_IN_THE_FILE:
        ours.pop(key, None), theirs.pop(key, None)
    assert ours == theirs


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("tied", [False, True])
def test_models_of_unusual_sizes(arch, tied, tmp_path):
    spec = Spec(
        arch=arch,
        tied=tied,
        layers=3,
        hidden=64,
        heads=6,
        kv_heads=3,
        head_size=32,
        ffn=224,
        experts=5,
        experts_used=4,
        expert_ffn=512,
        shared_ffn=160,
        vocab=96,
        default="F32",
    )
    expected: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 224,
        "vocab_size": 96,
        "max_position_embeddings": 2048,
        "rms_norm_eps": float(np.float32(1e-6)),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": tied,
        # Of the tokenizer that random_model puts into its files.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if arch != "qwen2moe":
        expected["head_dim"] = 32 if arch.startswith("qwen3") else 64 // 6
    if spec.is_moe:
        expected |= {
            "num_experts": 5,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 512,
            "norm_topk_prob": arch == "qwen3moe",
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if arch == "qwen2moe":
        expected["shared_expert_intermediate_size"] = 160
    config = load_config(write_model(tmp_path / "m.gguf", spec).path)
    assert_is(config, arch.replace("moe", "_moe"), **expected)


@pytest.mark.parametrize(
    ("arch", "model_class"),
    [
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("qwen2moe", "Qwen2MoeForCausalLM"),
        ("qwen3moe", "Qwen3MoeForCausalLM"),
    ],
)
def test_model_class(arch, model_class, tmp_path):
    config = load_config(write(tmp_path / "m.gguf", arch))
    assert config.architectures == [model_class]
    assert str(config.dtype).removeprefix("torch.") == "bfloat16"


@EVERY_ARCHITECTURE
def test_every_field_of_the_table_reaches_its_attribute(arch, tmp_path):
    config = load_config(write(tmp_path / "m.gguf", arch))
    for key, field in ARCHITECTURES[arch].fields.items():
        attribute = field if isinstance(field, str) else field.attribute
        assert getattr(config, attribute) == FIELDS[key], key


@pytest.mark.parametrize("arch", ["qwen3", "qwen3moe"])
def test_head_size_is_the_files(arch, tmp_path):
    assert load_config(write(tmp_path / "m.gguf", arch)).head_dim == 40


@pytest.mark.parametrize("vocabulary", [VOCABULARY, VOCABULARY - 9])
def test_vocabulary_is_the_embeddings(vocabulary, tmp_path):
    """Models pad the matrix beyond the list of tokens."""
    tokens = [f"t{i}" for i in range(vocabulary)]
    path = write(tmp_path / "m.gguf", **{"tokenizer.ggml.tokens": tokens})
    assert load_config(path).vocab_size == VOCABULARY


@pytest.mark.parametrize("tied", [False, True])
def test_tied(tied, tmp_path):
    assert load_config(write(tmp_path / "m.gguf", tied=tied)).tie_word_embeddings is tied


def test_token_ids(tmp_path):
    ids = {"bos": 11, "eos": 22, "padding": 33}
    path = write(tmp_path / "m.gguf", **{f"tokenizer.ggml.{n}_token_id": i for n, i in ids.items()})
    config = load_config(path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (11, 22, 33)


def test_rope_base(tmp_path):
    config = load_config(write(tmp_path / "m.gguf"))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 123456.0}
    config = load_config(write(tmp_path / "n.gguf", rope__freq_base=None))
    assert config.rope_parameters["rope_theta"] == 10000.0  # llama.cpp's default


@pytest.mark.parametrize("scaling", ["none", ""])
def test_no_rope_scaling(scaling, tmp_path):
    config = load_config(write(tmp_path / "m.gguf", rope__scaling__type=scaling))
    assert config.rope_parameters["rope_type"] == "default"


def test_yarn(tmp_path):
    path = write(
        tmp_path / "m.gguf",
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=32768,
    )
    assert_is_scaled(
        path,
        {
            "rope_type": "yarn",
            "rope_theta": 123456.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    )


def test_linear_rope_scaling(tmp_path):
    path = write(tmp_path / "m.gguf", rope__scaling__type="linear", rope__scaling__factor=2.5)
    expected = {"rope_type": "linear", "rope_theta": 123456.0, "factor": 2.5}
    assert_is_scaled(path, expected)


def assert_is_scaled(path: Path, rope: dict[str, Any]) -> None:
    assert_is(
        load_config(path),
        "qwen3_moe",
        num_hidden_layers=3,
        max_position_embeddings=777,
        hidden_size=96,
        intermediate_size=352,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=0.03125,
        head_dim=40,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=72,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        rope_parameters=rope,
    )


def test_unknown_rope_scaling(tmp_path):
    path = write(tmp_path / "m.gguf", rope__scaling__type="longrope", rope__scaling__factor=2.0)
    with pytest.raises(GGUFError, match="unknown type of RoPE scaling") as error:
        load_config(path)
    assert error.value.key == "qwen3moe.rope.scaling.type"
    assert error.value.found == "longrope"
    assert "config.json" in error.value.hint


@pytest.mark.parametrize(
    "keys",
    [
        {"type": "yarn"},
        {"type": "linear"},
        {"type": "yarn", "factor": 1.0},
        {"type": "linear", "factor": 0.0},
        {"type": "none", "factor": 4.0},
        {"original_context_length": 64},
        {"attn_factor": 1.0},
        {},
    ],
    ids=str,
)
def test_no_scaling_at_all(keys, tmp_path):
    path = write(tmp_path / "m.gguf", **{f"rope.scaling.{key}": keys[key] for key in keys})
    assert_is_scaled(path, {"rope_type": "default", "rope_theta": 123456.0})


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, 4.0),
    ],
    ids=str,
)
def test_a_factor_without_a_type_is_linear(keys, factor, tmp_path):
    expected = {"rope_type": "linear", "rope_theta": 123456.0, "factor": factor}
    assert_is_scaled(write(tmp_path / "m.gguf", **keys), expected)


def test_yarn_of_a_file_that_says_little(tmp_path):
    """The key of 2023 is its factor too, and the model's context what it was trained with."""
    path = write(tmp_path / "m.gguf", **{"rope.scaling.type": "yarn", "rope.scale_linear": 4.0})
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 777}
    assert_is_scaled(path, yarn | {"rope_theta": 123456.0})


@pytest.mark.parametrize("key", ["yarn_attn_factor", "attn_factor"])
def test_attention_of_yarn(key, tmp_path):
    """The converter writes transformers' number, llama.cpp a factor beside the usual one."""
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, key: 0.5}
    path = write(tmp_path / "m.gguf", **{f"rope.scaling.{name}": keys[name] for name in keys})
    usual = 0.1 * math.log(4.0) + 1
    found = load_config(path).rope_parameters
    expected = 0.5 if key.startswith("yarn") else 0.5 * usual
    assert found["attention_factor"] == pytest.approx(expected)
    assert found["attn_factor"] == pytest.approx(expected / usual)  # the engine's


def test_attention_scaled_by_nothing(tmp_path):
    path = write(tmp_path / "m.gguf", **{"rope.scaling.attn_factor": 1.5})
    with pytest.raises(GGUFError, match="only YaRN and LongRoPE") as error:
        load_config(path)
    assert error.value.key == "qwen3moe.rope.scaling.attn_factor"


def _required(architecture):
    fields = architecture.fields.items()
    return {key for key, field in fields if as_field(field).required}


REQUIRED = [
    (arch, key) for arch, known in ARCHITECTURES.items() for key in sorted(_required(known))
]


@pytest.mark.parametrize(("arch", "key"), REQUIRED)
def test_missing_key(arch, key, tmp_path):
    path = write(tmp_path / "m.gguf", arch, **{key: None})
    with pytest.raises(GGUFError, match="lacks a key that the model needs") as error:
        load_config(path)
    assert error.value.key == f"{arch}.{key}"
    assert error.value.file == str(path)


def test_every_size_is_required():
    """transformers' defaults are sizes of one particular model: right for no other."""
    free = {"attention.head_count_kv", "attention.key_length"}
    widths = {"expert_feed_forward_length", "expert_shared_feed_forward_length"}
    for arch in ARCHITECTURES.values():
        moe = {"feed_forward_length"} | widths if arch.name.endswith("moe") else set()
        assert _required(arch) == set(arch.fields) - free - moe


def test_keys_that_may_be_missing(tmp_path):
    config = load_config(write(tmp_path / "m.gguf", attention__head_count_kv=None))
    assert config.num_key_value_heads == config.num_attention_heads == 6
    load_config(write(tmp_path / "n.gguf", feed_forward_length=None))


def test_no_head_size(tmp_path):
    """llama.cpp divides then; so does whoever reads this configuration."""
    lengths = {"attention.key_length": None, "attention.value_length": None}
    config = load_config(write(tmp_path / "m.gguf", **lengths))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // 6
    assert head_size == 96 // 6


def test_no_head_size_in_a_dense_model(tmp_path):
    lengths = {"attention.key_length": None, "attention.value_length": None}
    config = load_config(write(tmp_path / "m.gguf", "qwen3", **lengths))
    assert config.head_dim == 96 // 6


@pytest.mark.parametrize("key", sorted(ARCHITECTURES["qwen3moe"].fields))
@pytest.mark.parametrize("value", ["12", True, [6, 6]], ids=["string", "bool", "array"])
def test_key_of_a_wrong_type(key, value, tmp_path):
    path = write(tmp_path / "m.gguf", **{key: value})
    problem = "wrong length" if isinstance(value, list) else "invalid value"
    with pytest.raises(GGUFError, match=f"{problem}.*one for all layers") as error:
        load_config(path)
    assert error.value.key == f"qwen3moe.{key}"
    assert error.value.file == str(path)


#: Of three blocks; that many is no array.
PER_LAYER = sorted(set(ARCHITECTURES["qwen3moe"].fields) - {"block_count"})


@pytest.mark.parametrize("key", [*PER_LAYER, "rope.freq_base"])
def test_an_array_of_equal_values_is_the_value(key, tmp_path):
    alone = load_config(write(tmp_path / "m.gguf"))
    arrays = load_config(write(tmp_path / "n.gguf", **{key: [FIELDS[key]] * 3}))
    assert arrays.to_dict() == alone.to_dict()


@pytest.mark.parametrize("key", PER_LAYER)
def test_an_array_of_different_values(key, tmp_path):
    """Of a model whose layers differ (OpenELM, Nemotron): "convert again" would not help."""
    value = FIELDS[key]
    path = write(tmp_path / "m.gguf", **{key: [value, value, 2 * value]})
    with pytest.raises(GGUFError, match="differs between layers.*cannot be served") as error:
        load_config(path)
    assert error.value.key == f"qwen3moe.{key}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.freq_base", "ten thousand"),
        ("rope.freq_base", [10000.0, 10000.0]),  # of three blocks
        ("block_count", [3, 3, 3]),
        ("rope.scaling.factor", "four"),
        ("rope.scaling.original_context_length", "long"),
        ("rope.scaling.type", [1, 2]),
        ("tokenizer.ggml.eos_token_id", "</s>"),
    ],
)
def test_other_key_of_a_wrong_type(key, value, tmp_path):
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    path = write(tmp_path / "m.gguf", **(scaling | {key: value}))
    with pytest.raises(GGUFError) as error:
        load_config(path)
    assert error.value.key.endswith(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.head_count", 0), ("block_count", 2.5), ("expert_used_count", 8)],
)
def test_impossible_numbers(key, value, tmp_path):
    path = write(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(GGUFError) as error:
        load_config(path)
    assert error.value.key == f"qwen3moe.{key}"


def test_file_without_an_embedding(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_tensor("output_norm.weight", np.zeros(8, np.float32))
    finish(writer)
    with pytest.raises(GGUFError, match="the file lacks this tensor") as error:
        load_config(tmp_path / "m.gguf")
    assert error.value.tensor == "token_embd.weight"


@pytest.mark.parametrize("token", [-1, 512, 128_002, 2**31 - 1])
def test_ids_of_tokens_that_there_are_not(token, tmp_path):
    """Converters write them for a padding token that a model lacks (SmolLM3): there is none."""
    keys = {f"tokenizer.ggml.{name}_token_id": (token, gguf.GGUFValueType.INT32) for name in IDS}
    rewrite(MODEL, tmp_path / "m.gguf", keys=keys)
    config = load_config(tmp_path / "m.gguf")
    assert not any(getattr(config, f"{name[:3].lower()}_token_id") == token for name in IDS)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (None, None)


IDS = ("bos", "eos", "padding")


def test_what_transformers_raises_is_one_line(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no\nsuch\nmodel")

    monkeypatch.setattr(AutoConfig, "for_model", refuse)
    with pytest.raises(GGUFError, match="no valid configuration of a qwen3 model: no such model"):
        load_config(MODEL)
