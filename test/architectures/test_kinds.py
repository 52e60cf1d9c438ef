"""Files that hold no model that can be served: each is called by its name."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from ascend_gguf import GGUFError, load_config, open_gguf
from ascend_gguf.architectures import architecture_of
from ascend_gguf.ggml_types import block_type
from ascend_gguf.reader.joining import how_to_join, whole_name
from rewrite import finish, rewrite

MODEL = Path(__file__).parents[1] / "data" / "qwen3-dense-Q4_K_M.gguf"


def _file(path: Path, arch: str | None, type_: str | None = None, tensor: str = "") -> Path:
    """A file of a few bytes; without ``arch`` as programs write that know no such key."""
    writer = gguf.GGUFWriter(path, arch or "none")
    if arch is None:
        del writer.kv_data[0]["general.architecture"]
    if type_ is not None:
        writer.add_string("general.type", type_)
    if tensor:
        writer.add_tensor(tensor, np.ones((2, 2), np.float32))
    finish(writer)
    return path


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (("qwen3", "adapter", "blk.0.attn_q.weight.lora_a"), ("LoRA adapter", "--lora-paths")),
        ((None, "imatrix", "blk.0.attn_q.weight.in_sum2"), ("importance matrix",)),
        (("clip", "mmproj", "v.patch_embd.weight"), ("vision", "mmproj")),
        (("clip", None, "v.patch_embd.weight"), ("vision", "mmproj")),
        (("controlvector", None, "direction.1"), ("control vector",)),
        (("eagle3", None, "fc.weight"), ("draft model",)),
        (("flux", None, "double_blocks.0.weight"), ("not supported", "images")),
        (("wan", None, "blocks.0.weight"), ("not supported", "videos")),
        ((None, None, "model.diffusion_model.input.weight"), ("images",)),
        (("whisper", None, "encoder.weight"), ("transcribes",)),
        (("wavtokenizer-dec", None, "conv1d.weight"), ("speech",)),
        (("nomic-bert", None, "token_embd.weight"), ("encoder", "embeddings")),
        (("t5", None, "enc.weight"), ("encoder-decoder",)),
        (("mamba", None, "token_embd.weight"), ("recurrent",)),
        (("llada", None, "token_embd.weight"), ("diffusion",)),
        (("qwen3", None, ""), ("no weights",)),
        ((None, None, "a.weight"), ("general.architecture", "lacks")),
    ],
)
def test_what_is_no_model_is_called_by_its_name(file, says, tmp_path):
    path = _file(tmp_path / "m.gguf", *file)
    for read in (load_config, lambda path: architecture_of(open_gguf(path))):
        with pytest.raises(GGUFError) as error:
            read(path)
        assert all(text in str(error.value) for text in says)
        assert "Convert" not in str(error.value) or "lacks" in says


@pytest.mark.parametrize(
    ("type_id", "says"),
    [
        (4, "Q4_2, which llama.cpp has removed"),
        (31, "Q4_0_4_4, which llama.cpp has removed"),
        (33, "Q4_0_8_8, which llama.cpp has removed"),
        (36, "IQ4_NL_4_4, which llama.cpp has removed"),
        (42, "Q2_0"),
        (139, "IQ4_K of ik_llama.cpp"),
        (152, "IQ5_KS of ik_llama.cpp"),
        (212, "interleaved type (_R4, _R8) of ik_llama.cpp"),
        (999, "unknown"),
    ],
)
def test_types_of_other_programs_and_times(type_id, says):
    with pytest.raises(GGUFError, match=f"type {type_id}, ") as error:
        block_type(type_id, file="m.gguf", tensor="a.weight")
    assert says in str(error.value)


@pytest.mark.parametrize("kind", [GGUFValueType.INT32, GGUFValueType.INT8])
def test_integers_are_no_weights(kind, tmp_path):
    dtype = np.int32 if kind == GGUFValueType.INT32 else np.int8

    def edit(name, data):
        return [(name, np.ones(256, dtype) if name == "output_norm.weight" else data)]

    path = tmp_path / "m.gguf"
    reader = gguf.GGUFReader(MODEL)
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        for name, data in edit(tensor.name, tensor.data):
            raw = tensor.tensor_type if data.dtype == np.uint8 else None
            writer.add_tensor(name, data, raw_dtype=raw)
    finish(writer)
    with pytest.raises(GGUFError, match="weights of this type are not supported"):
        architecture_of(open_gguf(path)).name_map(open_gguf(path), load_config(path))


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("llama-2-70b.Q8_0.gguf-split-a", "llama-2-70b.Q8_0.gguf"),
        ("m.gguf.part1of2", "m.gguf"),
        ("m.gguf.part-01", "m.gguf"),
        ("m.gguf.001", "m.gguf"),
        ("m.GGUF.aa", "m.GGUF"),
        ("m-split-b.gguf", "m.gguf"),
        ("m.part2of2.gguf", "m.gguf"),
        ("m-00001-of-00002.gguf", None),
        ("m-Q4_K_M.gguf", None),
        ("m.gguf", None),
        ("m.gguf.download", None),
        ("part-of-me.gguf", None),
    ],
)
def test_names_of_pieces(name, whole):
    assert whole_name(name) == whole


def test_pieces_are_to_be_joined(tmp_path):
    data = MODEL.read_bytes()
    half = len(data) // 2
    names = ["my model.gguf.part1of2", "my model.gguf.part2of2"]
    for name, part in zip(names, (data[:half], data[half:]), strict=True):
        (tmp_path / name).write_bytes(part)
    for name in names:
        with pytest.raises(GGUFError, match="cut for uploading") as error:
            open_gguf(tmp_path / name)
        assert f"`cat '{names[0]}' '{names[1]}' > 'my model.gguf'`" in str(error.value)
    # Where the whole is looked for, too.
    assert "cat" in how_to_join(tmp_path / "my model.gguf")
    # A whole file is no piece, whatever it is called.
    whole = tmp_path / "x.gguf.part1of1"
    whole.write_bytes(data)
    assert open_gguf(whole).architecture == "qwen3"


def test_pieces_come_in_order(tmp_path):
    for number in (10, 9, 1):
        (tmp_path / f"m.gguf.part{number}").write_bytes(b"")
    assert "m.gguf.part1 m.gguf.part9 m.gguf.part10 >" in how_to_join(tmp_path / "m.gguf.part9")


def test_one_piece_alone(tmp_path):
    (tmp_path / "m.gguf-split-b").write_bytes(b"some bytes")
    with pytest.raises(GGUFError, match="Download all of its pieces"):
        open_gguf(tmp_path / "m.gguf-split-b")


def test_encoders_are_left_out(tmp_path):
    names = ("v.patch_embd.weight", "mm.0.weight", "a.conv1d.0.bias", "resampler.query")
    tensors = {name: np.ones((4, 4), np.float32) for name in names}
    rewrite(MODEL, tmp_path / "m.gguf", tensors=tensors)
    file, plain = open_gguf(tmp_path / "m.gguf"), open_gguf(MODEL)
    found, expected = (architecture_of(f).name_map(f, load_config(f.path)) for f in (file, plain))
    assert found == expected


@pytest.mark.parametrize("scale", [np.ones(2), np.array([np.nan]), np.array([np.inf])])
def test_scale_that_makes_no_sense(scale, tmp_path):
    tensors = {"blk.0.attn_q.scale": scale.astype(np.float32)}
    rewrite(MODEL, tmp_path / "m.gguf", tensors=tensors)
    file = open_gguf(tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=r"attn_q.scale.*one finite number"):
        architecture_of(file).name_map(file, load_config(file.path))


def test_scale_without_a_weight(tmp_path):
    rewrite(MODEL, tmp_path / "m.gguf", tensors={"blk.0.ffn_gate_exps.scale": np.ones(1, "f4")})
    file = open_gguf(tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=r"ffn_gate_exps.scale.*no such tensor"):
        architecture_of(file).name_map(file, load_config(file.path))
