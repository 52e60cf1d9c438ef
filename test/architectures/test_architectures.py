"""Tensor names: what a file calls a tensor and what the model does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ascend_gguf import GGUFError, GGUFFile, load_config, open_gguf
from ascend_gguf.architectures import ARCHITECTURES as TABLE
from ascend_gguf.architectures import Rename, architecture_of
from ascend_gguf.ggml_types import BLOCK_TYPES
from random_model import NAMES, Spec, write_model
from reader.bad_files import good_file
from rewrite import rewrite

#: Those that :class:`Spec` can write, by name.
ARCHITECTURES = {a.name: a for a in TABLE if a.name in NAMES}

EVERY_ARCHITECTURE = pytest.mark.parametrize("arch", ARCHITECTURES)


@dataclass(frozen=True)
class Edited(Spec):
    """A small model, some of whose tensors have other shapes, or are absent (None)."""

    default: str = "F32"
    changed: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    # Sizes of which no two are equal, so that no two shapes can be confused.
    hidden: int = 48
    heads: int = 3
    kv_heads: int = 1
    head_size: int = 16
    ffn: int = 80
    experts: int = 5
    expert_ffn: int = 24
    shared_ffn: int = 40
    vocab: int = 96

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes() | self.changed
        return {name: shape for name, shape in shapes.items() if shape is not None}


def opened(folder: Path, arch: str, changed=(), **sizes) -> GGUFFile:
    return open_gguf(
        write_model(folder / "m.gguf", Edited(arch=arch, changed=dict(changed)), **sizes).path
    )


def name_map(file: GGUFFile) -> dict[str, str | tuple[str, ...]]:
    return architecture_of(file).name_map(file, load_config(file.path))


def flat(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def transformers_shapes(arch: str, spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name to shape of every weight of transformers' own model."""
    sizes = {
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.experts_used,
        "moe_intermediate_size": spec.expert_ffn,
        "shared_expert_intermediate_size": spec.shared_ffn,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(ARCHITECTURES[arch].model_type, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def gguf_py_name(arch: str, hf_name: str, layers: int) -> str:
    """gguf-py's name in the file of a weight of a Hugging Face checkpoint."""
    known = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    # Checkpoints number the experts; converters stack them under the name without the number.
    base, _, suffix = hf_name.replace(".{expert}", "").rpartition(".")
    return f"{gguf.get_tensor_name_map(known, layers).get_name(base)}.{suffix}"


@EVERY_ARCHITECTURE
def test_names_agree_with_gguf_py(arch, tmp_path):
    names = name_map(opened(tmp_path, arch))
    for in_file, in_model in names.items():
        assert isinstance(in_model, str)
        assert gguf_py_name(arch, in_model, layers=2) == in_file


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if "moe" in arch])
def test_fused_experts_are_named_by_their_parts(arch, tmp_path):
    names = name_map(opened(tmp_path, arch, fused_experts=True))
    for layer in range(2):
        experts = f"model.layers.{layer}.mlp.experts.{{expert}}"
        assert names[f"blk.{layer}.ffn_gate_up_exps.weight"] == (
            f"{experts}.gate_proj.weight",  # gate first, as in the tensor
            f"{experts}.up_proj.weight",
        )
    assert not [name for name in names if "gate_exps" in name or "ffn_up_exps" in name]


@EVERY_ARCHITECTURE
def test_every_weight_of_the_model_has_a_tensor_of_its_shape(arch, tmp_path):
    file = opened(tmp_path, arch)
    spec = Edited(arch=arch)
    model = transformers_shapes(arch, spec)
    in_file: dict[str, tuple[int, ...]] = {}
    for name, hf_name in name_map(file).items():
        in_file[hf_name] = file.tensors[name].shape
    for layer in range(spec.layers if spec.is_moe else 0):
        experts = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: in_file.pop(f"{experts}.{{expert}}.{part}_proj.weight")
            for part in ("gate", "up", "down")
        }
        gate_up = model.pop(f"{experts}.gate_up_proj")
        assert gate_up == (parts["gate"][0], parts["gate"][1] + parts["up"][1], parts["up"][2])
        assert model.pop(f"{experts}.down_proj") == parts["down"]
        # transformers has this vector as a matrix of one row.
        gate = f"model.layers.{layer}.mlp.shared_expert_gate.weight"
        if gate in model:
            assert model[gate] == (1, *in_file[gate])
            in_file[gate] = model[gate]
    assert in_file == model


@EVERY_ARCHITECTURE
def test_shapes_of_the_table_are_those_of_the_model(arch, tmp_path):
    config = load_config(opened(tmp_path, arch).path)
    model = transformers_shapes(arch, Edited(arch=arch))
    for rule in ARCHITECTURES[arch].tensors:
        rule = rule.of_layer(1)
        expected = rule.expected_shape(config)
        if "{expert}" in flat(rule.hf)[0]:
            part = "down_proj" if "down" in rule.gguf else "gate_up_proj"
            stacked = model[f"model.layers.1.mlp.experts.{part}"]
            halves = 1 if "down" in rule.gguf or isinstance(rule.hf, tuple) else 2
            assert expected == (stacked[0], stacked[1] // halves, stacked[2])
        elif rule.optional and not set(flat(rule.hf)) & set(model):
            assert rule.gguf.endswith(".bias")  # which transformers' model has if told so
        else:
            shapes = [model[name] for name in flat(rule.hf)]
            shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            assert expected == (shape[1:] if "shexp" in rule.gguf and shape[0] == 1 else shape)


@EVERY_ARCHITECTURE
def test_table_is_consistent(arch):
    rules = ARCHITECTURES[arch].tensors
    names = [rule.gguf for rule in rules]
    assert len(set(names)) == len(names)
    assert ARCHITECTURES[arch].name == arch
    for rule in rules:
        assert all(("{layer}" in name) == ("{layer}" in rule.gguf) for name in flat(rule.hf))
        assert rule.unless is None or rule.unless in names


@EVERY_ARCHITECTURE
def test_tied_files_need_no_output(arch, tmp_path):
    names = name_map(opened(tmp_path, arch, tied=True))
    assert "output.weight" not in names
    assert "lm_head.weight" not in names.values()
    assert names["token_embd.weight"] == "model.embed_tokens.weight"


def test_layer_numbers_are_filled_in():
    rule = Rename("blk.{layer}.a", "2*ffn", ("x.{layer}.{expert}.a", "x.{layer}.b"))
    filled = rule.of_layer(12)
    assert filled == Rename("blk.12.a", "2*ffn", ("x.12.{expert}.a", "x.12.b"))
    arch = ARCHITECTURES["qwen3moe"]
    found = arch.rename("blk.31.ffn_up_exps.weight")
    assert found.hf == "model.layers.31.mlp.experts.{expert}.up_proj.weight"
    assert found.unless == "blk.31.ffn_gate_up_exps.weight"
    assert arch.rename("output.weight").hf == "lm_head.weight"
    for unknown in ("blk.3.nonsense.weight", "attn_q.weight", "blk.x.attn_q.weight", "blk.3.", ""):
        assert arch.rename(unknown) is None


@pytest.mark.parametrize(
    ("arch", "extra"),
    [
        ("qwen3", "blk.0.attn_q_norm.bias"),
        ("qwen2", "blk.1.attn_q_norm.weight"),
        ("qwen3", "blk.0.ffn_gate_exps.weight"),
        ("qwen3moe", "blk.0.ffn_gate_shexp.weight"),
        ("qwen3moe", "w.patch_embd.weight"),
        ("qwen3", "blk.0.attn_q.weight.scale"),
        ("qwen3", "xblk.0.attn_q.weight"),
        pytest.param("qwen3", f"blk.{'9' * 5001}.attn_q.weight", id="thousands of digits"),
    ],
)
def test_unknown_tensor(arch, extra, tmp_path):
    file = opened(tmp_path, arch, {extra: (48,)})
    with pytest.raises(GGUFError, match=rf"model has no such tensor.*of a {arch} model") as error:
        name_map(file)
    assert error.value.tensor == extra
    assert error.value.file == str(file.path)


@pytest.mark.parametrize("layer", ["2", "17", "99999999999999999999"])
def test_layer_that_the_model_lacks(layer, tmp_path):
    file = opened(tmp_path, "qwen3", {f"blk.{layer}.attn_norm.weight": (48,)})
    with pytest.raises(GGUFError, match=r"no such tensor.*2 blocks") as error:
        name_map(file)
    assert error.value.tensor == f"blk.{layer}.attn_norm.weight"


def test_tensors_that_no_model_needs(tmp_path):
    name = "blk.1.attn_rot_embd.weight"
    assert name not in name_map(opened(tmp_path, "qwen3", {name: (8,)}))


@EVERY_ARCHITECTURE
def test_wrong_shape_of_any_tensor(arch, tmp_path):
    whole = Edited(arch=arch)
    config = load_config(opened(tmp_path, arch).path)
    for name, shape in whole.shapes().items():
        if name.startswith("blk.1."):
            continue
        # Only a vector may have one more dimension, of one, or be a matrix of one row.
        one_more = [(1, *shape), (1, shape[0])] if len(shape) > 1 else []
        for wrong in ((shape[0] + 8, *shape[1:]), (*shape[:-1], shape[-1] // 2, 2), *one_more):
            file = opened(tmp_path, arch, {name: wrong})
            with pytest.raises(GGUFError, match="shape does not fit") as error:
                architecture_of(file).name_map(file, config)
            assert error.value.tensor == name
            assert error.value.found == str(wrong)
            assert str(shape) in error.value.expected


@pytest.mark.parametrize("type_name", ["Q8_1", "Q8_K", "I32"])
def test_types_that_hold_no_weights(type_name, tmp_path):
    file, name = opened(tmp_path, "qwen3"), "blk.0.attn_q.weight"
    kind = next(kind for kind in BLOCK_TYPES.values() if kind.name == type_name)
    file.tensors = {**file.tensors, name: replace(file.tensors[name], type=kind)}
    match = f"'{name}': weights of this type are not supported .found {type_name}.*Q4_K_M or Q8_0"
    with pytest.raises(GGUFError, match=match):
        name_map(file)


def test_transposed_matrix(tmp_path):
    file = opened(tmp_path, "qwen3", {"blk.0.ffn_down.weight": (80, 48)})
    with pytest.raises(GGUFError, match=r"blk.0.ffn_down.*\(80, 48\).*\(48, 80\) \(hidden ffn\)"):
        name_map(file)


def test_row_vector_may_have_its_dimension_of_one(tmp_path):
    file = opened(tmp_path, "qwen2moe", {"blk.0.ffn_gate_inp_shexp.weight": (1, 48)})
    assert name_map(file)["blk.0.ffn_gate_inp_shexp.weight"].endswith("shared_expert_gate.weight")


@EVERY_ARCHITECTURE
def test_missing_tensor(arch, tmp_path):
    config = load_config(opened(tmp_path, arch).path)
    for name, shape in Edited(arch=arch).shapes().items():
        if name == "output.weight" or name.startswith("blk.0."):
            continue
        if arch == "qwen2moe" and name.endswith(".bias"):  # as in llama.cpp
            continue
        file = opened(tmp_path, arch, {name: None})
        with pytest.raises(GGUFError, match="the file lacks this tensor") as error:
            architecture_of(file).name_map(file, config)
        assert error.value.tensor == name
        assert error.value.file == str(file.path)
        assert str(shape) in error.value.expected


def test_whole_layer_missing(tmp_path):
    layer = {name: None for name in Edited().shapes() if name.startswith("blk.1.")}
    with pytest.raises(GGUFError, match=r"blk\.1\..*the file lacks this tensor"):
        name_map(opened(tmp_path, "qwen3", layer))


@pytest.mark.parametrize("gone", ["gate", "up"])
def test_half_of_unfused_experts(gone, tmp_path):
    file = opened(tmp_path, "qwen3moe", {f"blk.1.ffn_{gone}_exps.weight": None})
    with pytest.raises(GGUFError, match="the file lacks this tensor") as error:
        name_map(file)
    assert error.value.tensor == f"blk.1.ffn_{gone}_exps.weight"


def test_fused_experts_of_one_layer_excuse_no_other(tmp_path):
    changed = {"blk.0.ffn_gate_up_exps.weight": None}
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_gate_exps.*the file lacks this tensor"):
        name_map(opened(tmp_path, "qwen3moe", changed, fused_experts=True))


def test_layers_may_differ_in_how_experts_are_stored(tmp_path):
    changed = {
        "blk.0.ffn_gate_up_exps.weight": None,
        "blk.0.ffn_gate_exps.weight": (5, 24, 48),
        "blk.0.ffn_up_exps.weight": (5, 24, 48),
    }
    names = name_map(opened(tmp_path, "qwen3moe", changed, fused_experts=True))
    assert "blk.0.ffn_up_exps.weight" in names
    assert "blk.1.ffn_gate_up_exps.weight" in names


@EVERY_ARCHITECTURE
def test_fused_queries_keys_and_values_share_their_rows(arch, tmp_path):
    rows = {"q": 48, "k": 16, "v": 16}
    apart = {f"blk.0.attn_{part}.{kind}": None for part in rows for kind in ("weight", "bias")}
    fused = {"blk.0.attn_qkv.weight": (80, 48), "blk.0.attn_qkv.bias": (80,)}
    names = name_map(opened(tmp_path, arch, apart | fused))
    for kind in ("weight", "bias"):
        placement = names[f"blk.0.attn_qkv.{kind}"]
        assert placement.rows == tuple(rows.values())
        expected = (f"model.layers.0.self_attn.{part}_proj.{kind}" for part in rows)
        assert placement.names == tuple(expected)
    assert "blk.1.attn_q.weight" in names


@pytest.mark.parametrize("part", ["q.weight", "k.weight", "v.bias"])
def test_queries_keys_and_values_both_fused_and_apart(part, tmp_path):
    changed = {
        "blk.0.attn_qkv.weight": (80, 48),
        "blk.0.attn_qkv.bias": (80,),
        f"blk.0.attn_{part}": {"q.weight": (48, 48), "k.weight": (16, 48), "v.bias": (16,)}[part],
    }
    with pytest.raises(GGUFError, match=r"same weights twice.*blk\.0\.attn_qkv"):
        name_map(opened(tmp_path, "qwen3", changed))


def test_experts_both_fused_and_separate(tmp_path):
    changed = {"blk.0.ffn_gate_exps.weight": (5, 24, 48)}
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_gate"):
        name_map(opened(tmp_path, "qwen3moe", changed, fused_experts=True))


def test_layer_number_with_zeros(tmp_path):
    file = opened(tmp_path, "qwen3", {"blk.01.attn_norm.weight": (48,)})
    with pytest.raises(GGUFError, match="no such tensor"):
        name_map(file)


def test_unsupported_architecture_lists_the_known(tmp_path):
    model = write_model(tmp_path / "m.gguf", Edited(arch="qwen3"))
    data = model.path.read_bytes()
    assert data.count(b"qwen3") > 1
    model.path.write_bytes(data.replace(b"qwen3", b"qwen9"))
    for call in (lambda: architecture_of(open_gguf(model.path)), lambda: load_config(model.path)):
        with pytest.raises(GGUFError, match="architecture is not supported") as error:
            call()
        assert error.value.found == "qwen9"
        assert error.value.key == "general.architecture"
        assert error.value.file == str(model.path)
        assert all(known in error.value.expected.split(", ") for known in ARCHITECTURES)


def test_known_architecture_without_a_model(tmp_path):
    """A good file that holds anything but the model it says it is."""
    with pytest.raises(GGUFError, match=r"good\.gguf.*lacks"):
        load_config(good_file(tmp_path / "good.gguf"))


def test_a_vector_of_several_parts_is_no_matrix(tiny_model, tmp_path):
    def of_one_row(name, data):
        return [(name, data[None] if name == "blk.0.attn_qkv.bias" else data)]

    path = tmp_path / "model.gguf"
    rewrite(tiny_model("qwen").path, path, of_one_row)
    with pytest.raises(GGUFError, match=r"attn_qkv\.bias.*shape does not fit"):
        name_map(open_gguf(path))


@pytest.mark.parametrize("key", ["attention.q_lora_rank", "expert_shared_count"])
def test_tensors_of_a_part_that_the_configuration_leaves_out(tiny_model, tmp_path, key):
    path = tmp_path / "model.gguf"
    keys = {f"deepseek2.{key}": (0, gguf.GGUFValueType.UINT32)}
    rewrite(tiny_model("deepseek-v3").path, path, keys=keys)
    with pytest.raises(GGUFError, match="shape does not fit"):
        name_map(open_gguf(path))
