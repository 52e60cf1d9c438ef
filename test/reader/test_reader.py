"""The GGUF reader: what it reads is what gguf-py reads, and bad files are refused in words."""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile, open_gguf
from fetch import llama_cpp
from needs import fetched, shared
from reader.bad_files import (
    ALIGNMENT,
    BAD_FILES,
    NUMBERS,
    STRINGS,
    after,
    good_file,
    good_writer,
    put,
)
from rewrite import finish
from shared_data import shared_path


@pytest.fixture
def good(tmp_path) -> Path:
    return good_file(tmp_path / "good.gguf")


@pytest.fixture
def split(tmp_path) -> list[Path]:
    """A model in 4 files: 12 tensors as 0 + 4 + 4 + 4."""
    finish(good_writer(tmp_path / "m.gguf", split_max_tensors=4, small_first_shard=True))
    files = sorted(tmp_path.glob("m-*.gguf"))
    assert len(files) == 4
    return files


def shared_files() -> list[Path]:
    folders = [shared_path("models"), shared_path("models", "split"), shared_path("vocab")]
    files = [file for folder in folders if folder for file in sorted(folder.glob("*.gguf"))]
    # gguf-py needs minutes for the others.
    return [
        file for file in files if file.stat().st_size < 1 << 22 and "ggml-vocab" not in file.name
    ]


def assert_same_tensors(file: GGUFFile, path: Path) -> None:
    """Names, order, shapes, types, places and bytes are those gguf-py finds in the file."""
    ours = [tensor for tensor in file.tensors.values() if tensor.file == path]
    theirs = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in ours] == [tensor.name for tensor in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.type.ggml_type == their.tensor_type
        assert our.shape == tuple(reversed(their.shape.tolist()))
        assert (our.offset, our.nbytes) == (their.data_offset, their.n_bytes)
        assert our.blocks.dtype is torch.uint8
        assert our.blocks.shape == (*our.shape[:-1], our.type.row_bytes(our.shape[-1]))
        assert our.blocks.numpy().tobytes() == their.data.tobytes()
        if not our.type.is_quantized:
            assert our.values.dtype is our.type.dtype
            assert our.values.shape == our.shape
            assert our.values.view(torch.uint8).numpy().tobytes() == their.data.tobytes()


def assert_same_metadata(file: GGUFFile) -> None:
    fields = gguf.GGUFReader(file.files[0]).fields
    theirs = {key: field.contents() for key, field in fields.items() if key[:5] != "GGUF."}
    ours = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in file.metadata.items()
    }
    assert ours == theirs
    assert {key: type(value) for key, value in ours.items()} == {
        key: type(value) for key, value in theirs.items()
    }


class TestGoodFile:
    def test_metadata_is_what_was_written(self, good):
        file = open_gguf(good)
        for value_type, values in NUMBERS.items():
            name = value_type.name.lower()
            scalar, array = file.metadata[f"test.{name}"], file.metadata[f"test.{name}s"]
            assert type(scalar) is type(values[0])
            assert scalar == values[0]
            assert array.dtype == np.dtype(name)
            np.testing.assert_array_equal(array, np.array(values, name))
        assert file.metadata["test.string"] == "naïve 日本語"
        assert file.metadata["test.strings"] == STRINGS

    def test_agrees_with_gguf_py(self, good):
        file = open_gguf(str(good))
        assert file.path == good
        assert file.files == (good,)
        assert_same_metadata(file)
        assert_same_tensors(file, good)

    def test_numbers_have_their_values(self, tmp_path):
        values = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
        writer.add_tensor("f32", values)
        bf16 = torch.from_numpy(values).bfloat16().view(torch.uint8).numpy()
        writer.add_tensor("bf16", bf16, raw_dtype=GGMLQuantizationType.BF16)
        finish(writer)
        for tensor in open_gguf(tmp_path / "m.gguf").tensors.values():
            assert tensor.values.tolist() == values.tolist()

    def test_architecture_fields(self, good):
        file = open_gguf(good)
        assert file.architecture == "qwen3"
        assert file.arch_field("block_count") == 2
        assert file.arch_field("rope.freq_base", default=None) is None
        with pytest.raises(GGUFError, match=r"good.gguf: metadata key 'qwen3.rope.freq_base'"):
            file.arch_field("rope.freq_base")

    def test_quantized_blocks_are_not_numbers(self, good):
        with pytest.raises(GGUFError, match=r"good.gguf: tensor 'h.q4_k': .*quantized.*Q4_K"):
            _ = open_gguf(good).tensors["h.q4_k"].values

    def test_version_2_reads_the_same(self, good):
        three = open_gguf(good)
        two = good.with_name("two.gguf")
        two.write_bytes(put(good.read_bytes(), 4, "I", 2))
        assert list(open_gguf(two).tensors) == list(three.tensors)
        assert open_gguf(two).metadata["test.strings"] == STRINGS

    def test_a_single_number_has_no_dimensions(self, good):
        data = good.read_bytes()
        row = after(data, "b.f32_1d")
        # Without its one size the table is 8 bytes shorter, which the padding behind it takes up.
        end = data.rindex(b"i.q6_k") + len(b"i.q6_k") + 4 + 4 * 8 + 4 + 8
        pad = -end % ALIGNMENT
        data = put(data, row, "I", 0)
        data = (
            data[: row + 4]
            + data[row + 12 : end]
            + bytes((pad + 8) % ALIGNMENT)
            + data[end + pad :]
        )
        good.write_bytes(data)
        tensor = open_gguf(good).tensors["b.f32_1d"]
        assert tensor.shape == tensor.values.shape == ()
        assert tensor.blocks.shape == (4,)
        assert tensor.values == open_gguf(good).tensors["a.f32"].values[0, 0]

    def test_alignment_of_one_byte(self, tmp_path):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
        writer.add_custom_alignment(1)
        writer.add_tensor("one", np.array([1, 2, 3], np.int8))
        writer.add_tensor("two", np.array([4.5, 5.5], np.float64))
        finish(writer)
        tensor = open_gguf(tmp_path / "m.gguf").tensors["two"]
        assert tensor.values.tolist() == [4.5, 5.5]
        assert tensor.values.data_ptr() % 8 == 0

    def test_bytes_that_are_not_utf8_are_kept(self, good):
        data = good.read_bytes()
        good.write_bytes(data.replace("日".encode(), b"\xff\xfe\x80"))
        file = open_gguf(good)
        token = file.metadata["test.strings"][3]
        assert token.encode("utf-8", "surrogateescape") == b"\xff\xfe\x80" + "本語".encode()
        assert file.metadata["test.string"].endswith("本語")

    def test_a_bool_is_any_byte_but_zero(self, good):
        data = good.read_bytes()
        good.write_bytes(put(data, after(data, "test.bools") + 16, "BB", 7, 0))
        assert open_gguf(good).metadata["test.bools"].tolist() == [True, False]

    def test_metadata_cannot_be_changed(self, good):
        file = open_gguf(good)
        with pytest.raises(TypeError):
            file.metadata["a"] = 1
        with pytest.raises(ValueError, match="read-only"):
            file.metadata["test.int32s"][0] = 1

    def test_no_metadata_no_tensors(self, tmp_path):
        path = tmp_path / "m.gguf"
        path.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
        file = open_gguf(path)
        assert (dict(file.metadata), dict(file.tensors)) == ({}, {})
        with pytest.raises(GGUFError, match=r"m.gguf: metadata key 'general.architecture'"):
            _ = file.architecture

    def test_architecture_that_is_a_number(self, good):
        data = good.read_bytes()
        pair = after(data, "general.architecture")
        # The string "qwen3" takes 4 + 8 + 5 bytes; a uint64 4 + 8, so 5 more are cut.
        good.write_bytes(put(data, pair, "IQ", 10, 5)[: pair + 12] + data[pair + 17 :])
        with pytest.raises(GGUFError, match=r"'general.architecture': .*not a string.*found 5"):
            _ = open_gguf(good).architecture


class TestViews:
    def test_no_bytes_are_copied(self, good):
        tensor = open_gguf(good).tensors["g.q8_0"]
        assert tensor.blocks.data_ptr() == tensor.blocks.data_ptr()
        tensor = open_gguf(good).tensors["a.f32"]
        assert tensor.blocks.data_ptr() == tensor.values.data_ptr()

    def test_storage_is_the_tensors_own(self, good):
        """Pickling or sharing a view must not take the rest of the file along."""
        for tensor in open_gguf(good).tensors.values():
            assert tensor.blocks.untyped_storage().nbytes() == tensor.nbytes

    def test_views_outlive_the_file_object(self, tmp_path):
        path = good_file(tmp_path / "gone.gguf")
        expected = gguf.GGUFReader(path).tensors[0].data.copy()
        view = open_gguf(path).tensors["a.f32"].values
        path.unlink()
        for number in range(20):  # push the file out of the cache
            open_gguf(good_file(tmp_path / f"{number}.gguf"))
        gc.collect()
        np.testing.assert_array_equal(view.numpy(), expected)

    @pytest.mark.filterwarnings("error")
    def test_a_write_does_not_reach_the_file(self, good):
        before = good.read_bytes()
        open_gguf(good).tensors["a.f32"].values.zero_()
        assert good.read_bytes() == before

    def test_a_file_larger_than_memory_is_mapped(self, good):
        with good.open("r+b") as file:
            file.truncate(1 << 42)  # sparse
        assert open_gguf(good).tensors["a.f32"].values.shape == (3, 5)


class TestCache:
    def test_one_parse_a_file(self, good):
        assert open_gguf(good) is open_gguf(str(good))

    def test_a_changed_file_is_read_again(self, good):
        first = open_gguf(good)
        data = good.read_bytes()
        good.write_bytes(put(data, after(data, "test.uint8") + 4, "B", 9))
        os.utime(good, ns=(0, 0))  # two writes may fall within one tick of the file system's clock
        assert open_gguf(good).metadata["test.uint8"] == 9
        assert first.metadata["test.uint8"] == 7

    def test_a_replaced_file_is_read_again(self, good):
        first = open_gguf(good)
        stat = good.stat()
        other = shutil.copy(good, good.with_name("other.gguf"))
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(other, good)
        assert open_gguf(good) is not first

    def test_a_changed_shard_is_read_again(self, split):
        first = open_gguf(split[0])
        os.utime(split[2], ns=(0, 0))
        assert open_gguf(split[0]) is not first


class TestSplit:
    def test_any_shard_opens_the_model(self, split, good):
        whole = open_gguf(good)
        for path in split:
            file = open_gguf(path)
            assert file.path == path
            assert file.files == tuple(split)
            assert file.architecture == "qwen3"
            assert list(file.tensors) == list(whole.tensors)
            for name, tensor in file.tensors.items():
                assert torch.equal(tensor.blocks, whole.tensors[name].blocks)
        for path in split:
            assert_same_tensors(file, path)

    def test_links_into_a_hugging_face_cache(self, split, tmp_path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "snapshot").mkdir()
        for number, path in enumerate(split):
            blob = path.rename(tmp_path / "blobs" / str(number))
            (tmp_path / "snapshot" / path.name).symlink_to(blob)
        assert len(open_gguf(tmp_path / "snapshot" / split[1].name).tensors) == 12

    def test_missing_shards_are_named(self, split):
        split[1].unlink()
        split[3].unlink()
        with pytest.raises(GGUFError, match=r"no m-00002-of-00004.gguf, m-00004-of-00004.gguf"):
            open_gguf(split[0])

    def test_shards_swapped(self, split):
        spare = split[1].rename(split[1].with_name("spare"))
        split[2].rename(split[1])
        spare.rename(split[2])
        with pytest.raises(GGUFError, match=r"m-00002.*'split.no': .*found 2, expected 1"):
            open_gguf(split[0])

    def test_shard_of_another_model(self, split, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        finish(good_writer(other / "m.gguf", split_max_tensors=5, small_first_shard=True))
        (other / split[2].name).replace(split[2])
        with pytest.raises(GGUFError, match=r"'split.tensors.count': .*found 12, expected 13"):
            open_gguf(split[0])

    def test_tensor_in_two_shards(self, split):
        data = split[2].read_bytes()
        name = next(name for name in ("e.f64", "f.i8") if name.encode() in data)
        other = {"e.f64": "a.f32", "f.i8": "f.f8"}[name]
        split[2].write_bytes(data.replace(name.encode(), other.encode()))
        with pytest.raises(GGUFError, match=rf"m-00003.*tensor '{other}': .*twice.*m-00002"):
            open_gguf(split[0])

    def test_shard_under_another_name(self, split):
        path = split[1].rename(split[1].with_name("renamed.gguf"))
        with pytest.raises(GGUFError, match=r"renamed.gguf: .*'split.count': .*-of-NNNNN"):
            open_gguf(path)

    def test_whole_file_under_a_shards_name(self, good, split):
        good.replace(split[1])
        with pytest.raises(GGUFError, match=r"m-00002.*'split.count': .*no such key, expected 4"):
            open_gguf(split[1])

    @pytest.mark.parametrize("place", ["00000-of-00002", "00003-of-00002"])
    def test_impossible_place(self, good, place):
        path = good.rename(good.with_name(f"m-{place}.gguf"))
        with pytest.raises(GGUFError, match="impossible place"):
            open_gguf(path)

    def test_split_into_one(self, good):
        path = good.rename(good.with_name("m-00001-of-00001.gguf"))
        assert open_gguf(path).files == (path,)

    def test_error_names_the_shard(self, split):
        split[3].write_bytes(split[3].read_bytes()[:-400])
        with pytest.raises(GGUFError, match=r"m-00004-of-00004.gguf: tensor 'i.q6_k': .*past"):
            open_gguf(split[0])

    @pytest.mark.parametrize(
        ("whole", "first"),
        [
            ("qwen3-moe-Q4_K_M.gguf", "split/qwen3-moe-Q4_K_M-00001-of-00004.gguf"),
            ("split/dummy.gguf", "split/dummy-00001-of-00002.gguf"),
        ],
    )
    def test_llama_cpp_splits(self, whole, first):
        whole, parts = (open_gguf(shared("models", name)) for name in (whole, first))
        assert list(parts.tensors) == list(whole.tensors)
        for name, tensor in parts.tensors.items():
            assert torch.equal(tensor.blocks, whole.tensors[name].blocks)
        for key in set(whole.metadata) - {"split.count"}:
            np.testing.assert_array_equal(parts.metadata[key], whole.metadata[key])


class TestDirectory:
    def test_one_file(self, good):
        assert open_gguf(good.parent).path == good

    def test_one_split_model(self, split):
        assert open_gguf(split[0].parent).files == tuple(split)

    def test_split_model_without_its_first_shard(self, split):
        split[0].unlink()
        with pytest.raises(GGUFError, match=r"no m-00001-of-00004.gguf"):
            open_gguf(split[0].parent)

    def test_several_models_are_listed(self, good, split):
        with pytest.raises(GGUFError, match=r"exactly one.*good.gguf, m-00001-of-00004.gguf\)"):
            open_gguf(good.parent)

    def test_no_model(self, tmp_path):
        with pytest.raises(GGUFError, match=r"exactly one.*no .gguf file"):
            open_gguf(tmp_path)


class TestBadFile:
    @pytest.mark.parametrize("name", BAD_FILES)
    def test_says_what_is_wrong(self, good, name):
        bad = BAD_FILES[name]
        spoiled = bad.spoil(good.read_bytes())
        path = good.with_name("bad.gguf")
        path.write_bytes(spoiled)
        start = time.monotonic()
        with pytest.raises(GGUFError) as caught:
            open_gguf(path)
        assert time.monotonic() - start < 1
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert [part for part in bad.says if part not in text] == []
        assert caught.value.hint is not None
        assert len(text.splitlines()) == 1

    def test_no_such_file(self, tmp_path):
        with pytest.raises(GGUFError, match=r"nothing.gguf: .*No such file"):
            open_gguf(tmp_path / "nothing.gguf")

    def test_every_cut_is_noticed(self, good):
        """A file that ends anywhere before its last tensor does is refused."""
        data = good.read_bytes()
        last = list(open_gguf(good).tensors.values())[-1]
        end = last.offset + last.nbytes
        for size in [*range(0, last.offset, 7), end - 1]:
            path = good.with_name(f"{size}.gguf")
            path.write_bytes(data[:size])
            with pytest.raises(GGUFError):
                open_gguf(path)
            path.unlink()

    def test_mutations_never_crash(self, good):
        """Whatever the bytes, the result is a usable file or a GGUFError, at once."""
        data = good.read_bytes()
        header = open_gguf(good).tensors["a.f32"].offset
        chance = random.Random(0)
        hostile = [0, 1, 0xFF, 0x7F, 0x80, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
        opened = 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        for number in range(3000):
            mutant = bytearray(data)
            for _ in range(chance.randint(1, 3)):
                width = chance.choice([1, 4, 8])
                value = chance.choice([chance.getrandbits(64), *hostile]) & (256**width - 1)
                offset = chance.randrange(header - 8)
                mutant[offset : offset + width] = value.to_bytes(width, "little")
            # A name of its own: the clock of a file system is too coarse for the cache.
            path = good.with_name(f"{number}.gguf")
            path.write_bytes(mutant)
            try:
                file = open_gguf(path)
            except GGUFError as error:
                assert str(path) in str(error)
            else:
                opened += 1
                for tensor in file.tensors.values():
                    assert tensor.blocks.numel() == tensor.nbytes
            path.unlink()
        assert 0 < opened < 3000
        assert time.monotonic() - start < 30
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 << 10  # KiB


class TestSharedFiles:
    @pytest.mark.parametrize("path", shared_files(), ids=lambda path: path.name)
    def test_agrees_with_gguf_py(self, path):
        file = open_gguf(path)
        assert_same_tensors(file, path)
        if path == file.files[0]:
            assert_same_metadata(file)

    def test_a_large_vocabulary_is_fast(self):
        path = fetched(llama_cpp) / "models/ggml-vocab-qwen2.gguf"
        start = time.process_time()
        metadata = open_gguf(path).metadata
        assert time.process_time() - start < 2  # 0.1 to 0.2 on a quiet core
        assert len(metadata["tokenizer.ggml.tokens"]) == 151936
        assert metadata["tokenizer.ggml.tokens"][:3] == ["!", '"', "#"]
        assert metadata["tokenizer.ggml.merges"][0] == "Ġ Ġ"
