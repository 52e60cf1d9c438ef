"""The weights of a file under the names the engine's models load."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor, GGUFError, dequantize, load_config, open_gguf
from ascend_gguf.architectures import ARCHITECTURES as TABLE
from ascend_gguf.architectures import Placement, architecture_of
from ascend_gguf.srt.model_loader.weight_utils import gguf_quant_weights_iterator
from random_model import NAMES, Model, random_blocks, write_model
from rewrite import finish

#: Those that :class:`Spec` can write, by name.
ARCHITECTURES = {a.name: a for a in TABLE if a.name in NAMES}

EVERY_ARCHITECTURE = pytest.mark.parametrize("arch", ARCHITECTURES)

#: One matrix of each kind in another type, plain ones among them.
MIXED = {
    "attn_q.w": "F16",
    "attn_k.w": "Q8_0",
    "attn_v.w": "BF16",
    "gate_exps": "IQ4_XS",
    "up_exps": "BF16",
    "ffn_down": "Q6_K",
    "^output.w": "F32",
}


def names_of(model: Model) -> dict[str, str | tuple[str, ...]]:
    """The name map the loader uses."""
    file = open_gguf(model.path)
    return architecture_of(file).name_map(file, load_config(model.path))


def weights_of(
    path: Path, names: Mapping[str, str | tuple[str, ...]]
) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """Types of those that are blocks, and weights, by name; checks that nothing comes twice."""
    weights: dict[str, torch.Tensor] = {}
    for name, data in gguf_quant_weights_iterator(str(path), names):
        assert name not in weights
        weights[name] = data
    types = {
        name: int(data.block_type.ggml_type)
        for name, data in weights.items()
        if isinstance(data, BlockTensor)
    }
    return types, weights


def numbers_of(data: torch.Tensor) -> torch.Tensor:
    """The numbers of a weight, float32, in whichever layout it came."""
    return data.dequantize() if isinstance(data, BlockTensor) else data.float()


def expected_numbers(model: Model, names: Mapping) -> dict[str, np.ndarray]:
    """Name in the model to values."""
    expected = {}
    for name, hf_names in names.items():
        hf_names = (hf_names,) if isinstance(hf_names, str) else hf_names
        values = model.weights[name]
        if "ffn_gate_inp_shexp" in name:
            values = values.reshape(1, -1)
        parts = np.split(values, len(hf_names), axis=-2) if len(hf_names) > 1 else [values]
        for hf_name, part in zip(hf_names, parts, strict=True):
            if "{expert}" in hf_name:
                for expert, matrix in enumerate(part):
                    expected[hf_name.replace("{expert}", str(expert))] = matrix
            else:
                expected[hf_name] = part
    return expected


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("types", [{}, MIXED], ids=["one type", "mixed types"])
def test_every_number_under_its_name(arch, types, tmp_path):
    model = write_model(tmp_path / "m.gguf", arch=arch, types=types)
    names = names_of(model)
    _, weights = weights_of(model.path, names)
    expected = expected_numbers(model, names)
    assert set(weights) == set(expected)
    for name, values in expected.items():
        numbers = numbers_of(weights[name])
        assert numbers.shape == values.shape, name
        assert np.array_equal(numbers.numpy(), values), name


@EVERY_ARCHITECTURE
def test_blocks_know_their_type(arch, tmp_path):
    model = write_model(tmp_path / "m.gguf", arch=arch, types=MIXED)
    types, weights = weights_of(model.path, names_of(model))
    assert types
    assert all(weights[name].block_type.is_quantized for name in types)
    assert all(weights[name].blocks.dtype is torch.uint8 for name in types)
    assert all(weights[name].dtype is not torch.uint8 for name in set(weights) - set(types))


def test_types_are_the_files(tmp_path):
    model = write_model(tmp_path / "m.gguf", arch="qwen3moe", types=MIXED)
    types, _ = weights_of(model.path, names_of(model))
    layer = "model.layers.1."
    expected = {
        "self_attn.k_proj": "Q8_0",
        "self_attn.o_proj": "Q4_K",
        "mlp.experts.3.gate_proj": "IQ4_XS",
        "mlp.experts.0.down_proj": "Q6_K",
    }
    for name, type_name in expected.items():
        assert types[f"{layer}{name}.weight"] == GGMLQuantizationType[type_name]
    for plain in ("self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.gate"):
        assert f"{layer}{plain}.weight" not in types


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
def test_nothing_is_copied(arch, fused, tmp_path):
    """Each weight lies where the file is mapped."""
    model = write_model(tmp_path / "m.gguf", arch=arch, types=MIXED, fused_experts=fused)
    names = names_of(model)
    file = open_gguf(model.path)
    _, weights = weights_of(model.path, names)
    seen = 0
    for name, tensor in file.tensors.items():
        hf_names = (names[name],) if isinstance(names[name], str) else names[name]
        experts = tensor.shape[0] if "{expert}" in hf_names[0] else 1
        start, size = tensor.blocks.data_ptr(), tensor.nbytes // experts // len(hf_names)
        for expert in range(experts):
            for hf_name in hf_names:
                hf_name = hf_name.replace("{expert}", str(expert))
                data = getattr(weights[hf_name], "blocks", weights[hf_name])
                assert data.data_ptr() == start, hf_name
                assert data.nbytes == size
                assert data.is_contiguous()
                start += size
                seen += 1
    assert seen == len(weights)


@pytest.mark.parametrize(
    ("type_name", "dtype"),
    [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)],
)
@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe"])
def test_plain_numbers_keep_their_dtype(arch, type_name, dtype, tmp_path):
    """Whether the layer is quantized (attention, experts) or not (the router)."""
    model = write_model(
        tmp_path / "m.gguf", arch=arch, types={r"blk\.\d+\.(attn|ffn).*\.w": type_name}
    )
    types, weights = weights_of(model.path, names_of(model))
    layer = "model.layers.0."
    matrices = [
        "self_attn.q_proj.weight",
        "mlp.gate.weight",
        "mlp.experts.1.gate_proj.weight",
        "mlp.experts.1.down_proj.weight",
    ]
    assert all(weights[layer + name].dtype is dtype for name in matrices)
    assert all(weights[layer + name].dim() == 2 for name in matrices)
    assert set(types) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert weights["model.norm.weight"].dtype is torch.float32


def test_vectors_of_half_precision(tmp_path):
    model = write_model(tmp_path / "m.gguf", arch="qwen2", types={"norm|bias": "F16"})
    _, weights = weights_of(model.path, names_of(model))
    for name in ("model.norm.weight", "model.layers.1.self_attn.q_proj.bias"):
        assert weights[name].dtype is torch.float16
        assert weights[name].dim() == 1


def test_gate_of_the_shared_expert_is_a_row(tmp_path):
    model = write_model(tmp_path / "m.gguf", arch="qwen2moe")
    _, weights = weights_of(model.path, names_of(model))
    gate = weights["model.layers.1.mlp.shared_expert_gate.weight"]
    assert gate.shape == (1, 256)
    assert np.array_equal(gate[0].numpy(), model.weights["blk.1.ffn_gate_inp_shexp.weight"])


EXPERTS = "model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"


@pytest.mark.parametrize("fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("order", [None, lambda name: name[::-1]], ids=["as written", "reversed"])
def test_packed_experts(fused, order, tmp_path):
    model = write_model(tmp_path / "m.gguf", arch="qwen3moe", fused_experts=fused, order=order)
    _, weights = weights_of(model.path, names_of(model))
    for layer, expert in [(0, 0), (1, 3)]:
        for part in ("gate", "up", "down"):
            values = model.weights.get(f"blk.{layer}.ffn_{part}_exps.weight")
            if values is None:
                gate_up = model.weights[f"blk.{layer}.ffn_gate_up_exps.weight"]
                values = np.split(gate_up, 2, axis=1)[part == "up"]
            name = EXPERTS.format(layer=layer, expert=expert, part=part)
            assert np.array_equal(numbers_of(weights[name]).numpy(), values[expert])


def test_names_of_experts_may_be_any(tmp_path):
    model = write_model(tmp_path / "m.gguf", arch="qwen3moe", experts=3)
    names = {"blk.0.ffn_down_exps.weight": "x.{expert}.y.{expert}.weight"}
    _, weights = weights_of(model.path, names)
    assert [name for name in weights if name.startswith("x")] == [
        f"x.{e}.y.{e}.weight" for e in range(3)
    ]
    assert not [name for name in weights if "layers.0" in name and "down_proj" in name]


def tensor_file(path: Path, **tensors: tuple[str, tuple[int, ...]]) -> Path:
    """A file of tensors: name, with ``__`` for dots, to type and shape."""
    writer = gguf.GGUFWriter(path, "qwen3")
    for name, (type_name, shape) in tensors.items():
        blocks, values = random_blocks(np.random.default_rng(0), type_name, shape)
        name = name.replace("__", ".")
        if type_name == "F32":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[type_name])
    finish(writer)
    return path


@pytest.mark.parametrize(
    "hf_name",
    [
        "model.weight_norm.weight",
        "weight.weightless.weight",
        "a.qweight.weight",
        "model.layers.0.weight.weight",
    ],
)
def test_names_of_blocks_do_not_change(hf_name, tmp_path):
    path = tensor_file(tmp_path / "m.gguf", a__weight=("Q8_0", (4, 64)))
    types, weights = weights_of(path, {"a.weight": hf_name})
    assert list(types) == list(weights) == [hf_name]


def test_names_of_numbers_do_not_change(tmp_path):
    path = tensor_file(tmp_path / "m.gguf", a__weight=("F32", (4, 64)))
    types, weights = weights_of(path, {"a.weight": "weight.of.an.A_log"})
    assert (types, list(weights)) == ({}, ["weight.of.an.A_log"])


@pytest.mark.parametrize(
    ("hf_name", "shape"),
    [
        ("model.norm.weight", (64,)),
        ("model.norm.bias", (64,)),
        ("model.A_log", (4, 64)),
        ("experts.{expert}.gate_proj.bias", (4, 64)),
    ],
)
def test_quantized_tensor_that_is_no_matrix_is_decoded(hf_name, shape, tmp_path):
    path = tensor_file(tmp_path / "m.gguf", a__weight=("Q8_0", shape))
    types, weights = weights_of(path, {"a.weight": hf_name})
    whole = open_gguf(path).tensors["a.weight"]
    values = torch.cat([weights[name].flatten() for name in weights])
    assert not types and all(data.dtype == torch.float32 for data in weights.values())
    assert len(weights) == (4 if "{expert}" in hf_name else 1)
    assert torch.equal(values, dequantize(whole.blocks, whole.type.ggml_type).flatten())


@pytest.mark.parametrize("type_name", ["NVFP4", "Q4_K", "BF16", "F32"])
def test_scale_of_a_weight(type_name, tmp_path):
    path = tensor_file(
        tmp_path / "m.gguf",
        a__weight=(type_name, (4, 256)),
        a__scale=("F32", (1,)),
        experts__weight=(type_name, (3, 4, 256)),
        experts__scale=("F32", (3,)),
    )
    names = {"a.weight": ("q.weight", "k.weight"), "experts.weight": "{expert}.weight"}
    types, weights = weights_of(path, names)
    assert types.keys() == weights.keys()
    tensors = open_gguf(path).tensors
    scale, scales = tensors["a.scale"].values, tensors["experts.scale"].values
    expected = tensors["a.weight"].dequantize() * scale
    assert torch.equal(torch.cat((weights["q.weight"] * 1, weights["k.weight"] * 1)), expected)
    expected = tensors["experts.weight"].dequantize() * scales.view(3, 1, 1)
    assert torch.equal(torch.stack([weights[f"{e}.weight"] * 1 for e in range(3)]), expected)


def test_scales_of_tensors_that_become_one(tmp_path):
    path = tensor_file(
        tmp_path / "m.gguf",
        k__weight=("Q8_0", (2, 4, 64)),
        k__scale=("F32", (2,)),
        v__weight=("F32", (2, 4, 64)),
        v__scale=("F32", (1,)),
    )
    placement = Placement(
        ("kv.weight",), undo=lambda k, v: torch.cat((k, v)), beside=("v.weight",), dense=True
    )
    _, weights = weights_of(path, {"k.weight": placement, "v.weight": Placement(())})
    tensors = open_gguf(path).tensors
    k = tensors["k.weight"].dequantize() * tensors["k.scale"].values.view(2, 1, 1)
    v = tensors["v.weight"].dequantize() * tensors["v.scale"].values
    assert torch.equal(weights["kv.weight"], torch.cat((k, v)))


@pytest.mark.parametrize("type_name", ["F32", "BF16", "Q8_0"])
def test_rows_shared_by_several_weights(type_name, tmp_path):
    path = tensor_file(tmp_path / "m.gguf", qkv__weight=(type_name, (6, 64)))
    _, weights = weights_of(path, {"qkv.weight": ("q.weight", "k.weight", "v.weight")})
    whole = open_gguf(path).tensors["qkv.weight"]
    values = dequantize(whole.blocks, whole.type.ggml_type)
    for i, name in enumerate(("q", "k", "v")):
        part = numbers_of(weights[f"{name}.weight"])
        assert torch.equal(part, values[2 * i : 2 * i + 2])


@pytest.mark.parametrize(
    ("tensor", "names"),
    [
        (("Q8_0", (5, 64)), ("a.weight", "b.weight")),
        (("F32", (5, 64)), ("a.weight", "b.weight")),
        (("Q8_0", (3, 5, 64)), ("a.{expert}.weight", "b.{expert}.weight")),
        (("F32", (64,)), ("a.weight", "b.weight")),
    ],
    ids=["blocks", "numbers", "experts", "vector"],
)
def test_rows_that_cannot_be_shared(tensor, names, tmp_path):
    path = tensor_file(tmp_path / "m.gguf", both__weight=tensor)
    with pytest.raises(GGUFError, match="cannot be shared equally by 2") as error:
        weights_of(path, {"both.weight": names})
    assert error.value.tensor == "both.weight"
    assert error.value.file == str(path)
    assert str(tensor[1]) in error.value.found


def test_odd_rows_of_fused_experts(tmp_path):
    tensors = {"blk__0__ffn_gate_up_exps__weight": ("Q8_0", (2, 5, 64))}
    names = {"blk.0.ffn_gate_up_exps.weight": ("gate.{expert}.weight", "up.{expert}.weight")}
    with pytest.raises(GGUFError, match=r"blk\.0\.ffn_gate_up_exps.*shared equally"):
        weights_of(tensor_file(tmp_path / "m.gguf", **tensors), names)


def test_nothing_is_yielded_before_an_error(tmp_path):
    tensors = {"a__weight": ("Q8_0", (4, 64)), "b__weight": ("Q8_0", (5, 64))}
    path = tensor_file(tmp_path / "m.gguf", **tensors)
    names = {"a.weight": "a.weight", "b.weight": ("x.weight", "y.weight")}
    with pytest.raises(GGUFError):
        next(gguf_quant_weights_iterator(str(path), names))


def test_tensors_without_a_name_are_skipped(tmp_path):
    model = write_model(tmp_path / "m.gguf")
    _, weights = weights_of(model.path, {"token_embd.weight": "lm_head.weight"})
    assert list(weights) == ["lm_head.weight"]


def test_split_models(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}.weight", np.full((2, 3), i, np.float32))
    finish(writer)
    names = {f"t{i}.weight": f"m{i}.weight" for i in range(5)}
    for shard in sorted(tmp_path.glob("m-*.gguf")):
        _, weights = weights_of(shard, names)
        assert {name: data[0, 0].item() for name, data in weights.items()} == {
            f"m{i}.weight": i for i in range(5)
        }


def test_signature_is_the_engines():
    from sglang.srt.model_loader import weight_utils as engine

    theirs = inspect.signature(engine.gguf_quant_weights_iterator)
    ours = inspect.signature(gguf_quant_weights_iterator)
    assert list(ours.parameters) == list(theirs.parameters)
