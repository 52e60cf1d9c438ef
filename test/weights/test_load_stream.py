"""Streams: copies that are made later, and what may be seen of that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor, GGUFError, open_gguf
from ascend_gguf.reader.chunked_read import read
from ascend_gguf.reader.mapping import MappedFile
from ascend_gguf.weights import load_stream
from ascend_gguf.weights.load_stream import Stream, run
from random_model import ALL_TYPES, random_blocks
from rewrite import finish

#: More than is done at once (see load_stream._FEW_WEIGHTS).
ROWS, COLS = 400, 768


def write_tensors(path: Path, *types: str, shape: tuple[int, ...] = (ROWS, COLS)) -> Path:
    """Tensors ``t0``, ``t1``, ... of these types."""
    writer = gguf.GGUFWriter(path, "qwen3")
    for i, type_name in enumerate(types):
        blocks, _ = random_blocks(np.random.default_rng(i), type_name, shape)
        writer.add_tensor(f"t{i}", blocks, raw_dtype=GGMLQuantizationType[type_name])
    finish(writer)
    return path


def block_tensors(path: Path) -> list[BlockTensor]:
    tensors = open_gguf(path).tensors.values()
    return [BlockTensor(tensor.blocks, tensor.type.ggml_type) for tensor in tensors]


def loading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("load-")]


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    assert loading_threads() == []


@pytest.fixture(scope="module")
def all_types(tmp_path_factory) -> list[BlockTensor]:
    path = tmp_path_factory.mktemp("all") / "m.gguf"
    return block_tensors(write_tensors(path, *ALL_TYPES))


@pytest.fixture
def pair(tmp_path) -> list[BlockTensor]:
    """Two matrices of the same shape."""
    return block_tensors(write_tensors(tmp_path / "m.gguf", "Q4_K", "Q8_0"))


SLICES = {
    "whole": np.s_[:, :],
    "rows": np.s_[3:390, :],
    "whole blocks": np.s_[:, 256:768],
    "parts of blocks": np.s_[:, 5:700],
    "a few": np.s_[7:9, 5:300],
    "vector": np.s_[17],
}


@pytest.mark.parametrize("part", SLICES.values(), ids=SLICES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_numbers(all_types, part, threads):
    expected = [source[part].dequantize().bfloat16() for source in all_types]
    copies = [torch.full_like(values, 7.0) for values in expected]
    with Stream(threads):
        for copy, source in zip(copies, all_types, strict=True):
            copy.copy_(source[part])
    for copy, values in zip(copies, expected, strict=True):
        assert torch.equal(copy, values)


def test_what_is_read_is_what_is_mapped(all_types):
    """Read from the disk or found in memory, cut or not, in pieces or whole."""
    for source in all_types:
        in_memory = BlockTensor(source.blocks.clone(), source.block_type.ggml_type)
        for part in SLICES.values():
            assert torch.equal(source[part].dequantize(), in_memory[part].dequantize())


def test_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("ascend_gguf.weights.block_tensor._WEIGHTS_AT_ONCE", 3 * COLS + 1)
    for source in block_tensors(write_tensors(tmp_path / "m.gguf", "Q6_K", "F16")):
        numbers = BlockTensor(source.blocks.clone(), source.block_type.ggml_type).dequantize()
        assert torch.equal(source.dequantize(), numbers)
        assert torch.equal(source[1:, 3:701].dequantize(), numbers[1:, 3:701])


def test_stacks(tmp_path):
    path = write_tensors(tmp_path / "m.gguf", "Q5_K", "BF16", shape=(3, ROWS, 256))
    with Stream():
        for source in block_tensors(path):
            copy = torch.empty(source.shape).copy_(source)
            cut = torch.empty(2, 90, 200).copy_(source[1:, 10:100, 3:203])
            assert torch.equal(copy[1:, 10:100, 3:203], cut)
            assert torch.equal(copy, source.dequantize())


def test_a_copy_of_a_view(tmp_path):
    path = write_tensors(tmp_path / "m.gguf", "Q4_K", "F16", shape=(3, 8, 256))
    blocks, numbers = (open_gguf(path).tensors[name] for name in ("t0", "t1"))
    for view in (blocks.blocks, blocks.blocks[1, 2:], numbers.values, numbers.values[1:, :1]):
        copy = read(view)
        assert torch.equal(copy, view)
        assert (copy.data_ptr() == view.data_ptr()) == (not view.is_contiguous())
    assert read(copy) is copy


def test_only_the_slice_is_read(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "m.gguf", "Q4_K", "Q8_0")
    tensor = open_gguf(path).tensors["t1"]
    source = BlockTensor(tensor.blocks, tensor.type.ggml_type)
    reads = []
    original = MappedFile.read_into

    def read_into(self, buffer, offset):
        reads.append((offset, offset + len(buffer)))
        original(self, buffer, offset)

    monkeypatch.setattr(MappedFile, "read_into", read_into)
    row_bytes = COLS // 32 * 34
    with Stream():
        torch.empty(350, COLS).copy_(source[20:370])
    start = tensor.offset + 20 * row_bytes
    assert (min(reads)[0], max(reads)[1]) == (start, start + 350 * row_bytes)
    reads.clear()
    torch.empty(2, 40).copy_(source[:2, 33:73])  # blocks 1 and 2 of each row
    assert reads == [(tensor.offset + 34, tensor.offset + row_bytes + 3 * 34)]


@pytest.mark.parametrize("keep_cached", [True, False])
def test_reading_ahead_and_giving_back(pair, keep_cached, monkeypatch):
    advised: list[tuple[int, int, int]] = []
    monkeypatch.setattr(MappedFile, "advise", lambda _, *advice: advised.append(advice))
    with Stream(keep_cached=keep_cached):
        for source in pair:
            torch.empty(source.shape).copy_(source)
    extents = [load_stream.locate(s.blocks)[1:] + (s.blocks.nbytes,) for s in pair]
    ahead = [advice[:2] for advice in advised if advice[2] == os.POSIX_FADV_WILLNEED]
    back = [advice[:2] for advice in advised if advice[2] == os.POSIX_FADV_DONTNEED]
    assert ahead == extents
    assert sorted(back) == ([] if keep_cached else extents)


# --- as if every copy were made at once -------------------------------------------------------


class Gate:
    """Holds every work of a stream back until it is opened."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        assert self.event.wait(10)

    def open_soon(self) -> None:
        threading.Timer(0.05, self.event.set).start()


@pytest.fixture
def gate(pair, monkeypatch) -> Gate:
    gate = Gate()
    original = BlockTensor.dequantize_into

    def dequantize_into(self, out):
        if threading.current_thread().name.startswith("load-"):
            gate()
        return original(self, out)

    monkeypatch.setattr(BlockTensor, "dequantize_into", dequantize_into)
    return gate


def test_copying_returns_early(pair, gate):
    copy = torch.zeros(pair[0].shape)
    with Stream() as stream:
        copy.copy_(pair[0])
        assert (stream.submitted, stream.finished) == (1, 0)
        gate.event.set()
    assert (stream.submitted, stream.finished) == (1, 1)
    assert torch.equal(copy, pair[0].dequantize())


READS = {
    "sum": lambda p: p.sum(),
    "clone": lambda p: p.clone(),
    "of a view": lambda p: p[3:].narrow(1, 4, 5).clone(),
    "as an argument": lambda p: torch.zeros(p.shape).copy_(p),
    "in place": lambda p: p.mul_(2).clone(),
    "overwritten in part": lambda p: p[:2].fill_(3) is None or p.clone(),
    "another dtype": lambda p: p.half(),
    "comparison": lambda p: torch.equal(p, p),
    "stored": lambda p: torch.cat([p, p]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_waits(pair, gate, read):
    copy = torch.zeros(pair[0].shape)
    expected = read(pair[0].dequantize())
    with Stream():
        copy.copy_(pair[0])
        gate.open_soon()
        seen = read(copy)
    assert torch.equal(torch.as_tensor(seen), torch.as_tensor(expected))


def test_what_is_not_written_is_not_waited_for(pair, gate):
    copy, other = torch.zeros(pair[0].shape), torch.ones(3)
    with Stream() as stream:
        copy.copy_(pair[0])
        assert other.add(torch.empty(3).fill_(2)).tolist() == [3, 3, 3]
        copy[:0].fill_(1)  # no rows of padding
        assert (stream.submitted, stream.finished) == (1, 0)
        gate.event.set()
    assert torch.equal(copy, pair[0].dequantize())


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("rows", [slice(0, ROWS), slice(0, 5)], ids=["large", "small"])
def test_the_last_copy_stands(pair, gate, threads, rows):
    copy = torch.zeros(ROWS, COLS)
    expected = pair[0].dequantize()
    expected[rows] = pair[1].dequantize()[rows]
    gate.open_soon()
    with Stream(threads):
        copy.copy_(pair[0])
        copy[rows].copy_(pair[1][rows])
    assert torch.equal(copy, expected)


def test_without_a_stream_work_is_done_at_once(pair):
    done = []
    run(pair[0], lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()]


def test_work_is_done_by_threads(pair):
    done = []
    with Stream(2):
        for _ in range(20):
            run(pair[0], lambda: done.append(threading.current_thread().name))
            run(pair[0][:1], lambda: done.append("at once"))
    assert len(done) == 40
    assert set(done) <= {"load-0", "load-1", "at once"}
    assert done.count("at once") == 20


def test_streams_of_streams(pair):
    copies = torch.zeros(3, *pair[0].shape)
    with Stream():
        copies[0].copy_(pair[0])
        with Stream(1):
            copies[1].copy_(pair[0])
        assert len(loading_threads()) >= 1
        copies[2].copy_(pair[0])
    assert all(torch.equal(copy, pair[0].dequantize()) for copy in copies)


def test_not_too_far_ahead(pair, monkeypatch):
    monkeypatch.setattr(load_stream, "_MOST_SLICES_AHEAD", 3)
    started, release = [], threading.Event()

    def work() -> None:
        started.append(1)
        assert release.wait(10)

    with Stream(2) as stream:

        def later() -> None:
            ahead.append(stream.submitted)
            release.set()

        ahead: list[int] = []
        threading.Timer(0.2, later).start()
        for _ in range(12):
            run(pair[0], work)
    assert len(started) == 12
    assert ahead[0] <= 2 + 3  # in work, and waiting


def test_not_too_many_bytes_ahead(pair, monkeypatch):
    monkeypatch.setattr(load_stream, "_MOST_BYTES_AHEAD", pair[1].blocks.nbytes)
    ahead, release = [], threading.Event()
    with Stream(1) as stream:
        threading.Timer(0.2, lambda: (ahead.append(stream.submitted), release.set())).start()
        for _ in range(5):
            run(pair[1], lambda: release.wait(10))
    assert ahead[0] <= 3


# --- errors -----------------------------------------------------------------------------------


def fail() -> None:
    raise ZeroDivisionError("no way")


def test_errors_name_the_tensor(tmp_path, pair):
    with pytest.raises(GGUFError, match=r"'t1': the tensor cannot be loaded: no way") as error:
        with Stream():
            run(pair[0], lambda: None)
            run(pair[1], fail)
    assert error.value.file == str(tmp_path / "m.gguf")
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_small_slices_fail_at_once(pair):
    with Stream():
        with pytest.raises(GGUFError, match="'t1': the tensor cannot be loaded: no way"):
            run(pair[1][:1], fail)


def test_errors_of_the_library_keep_what_they_say(pair):
    def work() -> None:
        raise GGUFError("strange", key="a.key")

    with pytest.raises(GGUFError, match=r"m\.gguf: tensor 't0': metadata key 'a.key': strange"):
        with Stream() as stream:
            run(pair[0], work)
            stream.wait()


def test_after_an_error_nothing_more_is_done(pair):
    done = []
    with pytest.raises(GGUFError, match="no way"):
        with Stream(1) as stream:
            run(pair[0], fail)
            while stream.finished < 1:
                pass
            for _ in range(1000):
                run(pair[1], lambda: done.append(1))
    assert done == []


def test_an_error_of_the_caller_comes_through(pair):
    release = threading.Event()
    done = []
    with pytest.raises(KeyError, match="mine"):
        with Stream(1):
            for _ in range(5):
                run(pair[0], lambda: (release.wait(10), done.append(1)))
            release.set()
            raise KeyError("mine")
    assert len(done) < 5  # what waits is dropped


def test_wrong_shapes_are_seen_at_once(pair):
    with Stream():
        with pytest.raises(ValueError, match="shape"):
            torch.empty(ROWS, COLS - 1).copy_(pair[0])


_CUT_SHORT = """
import os, sys
import torch
from ascend_gguf import BlockTensor, GGUFError, open_gguf
from ascend_gguf.weights.load_stream import Stream

for path in sys.argv[1:]:
    tensors = list(open_gguf(path).tensors.values())
    end = tensors[3].offset + 5 if "inside" in path else 1000
    try:
        with Stream() as stream:
            for tensor in tensors:
                for _ in range(3):
                    source = BlockTensor(tensor.blocks, tensor.type.ggml_type)
                    torch.empty(source.shape, dtype=torch.bfloat16).copy_(source)
                if tensor.name == "t1":
                    stream.wait()
                    os.truncate(path, end)
    except GGUFError as error:
        print(error)
"""


def test_a_file_cut_short_while_it_is_loaded(tmp_path):
    """In a process of its own, which a touch of the mapping would kill."""
    types = ("Q4_K", "F16", "Q8_0", "F16", "Q4_K")
    shapes = {"large": (ROWS, COLS), "small": (2, COLS)}
    tensors = {"inside": "t3", "before": "t2"}  # where the file ends -> what is missed first
    paths = {
        (size, end): write_tensors(tmp_path / f"{size}-{end}.gguf", *types, shape=shape)
        for size, shape in shapes.items()
        for end in tensors
    }
    sizes = {path: path.stat().st_size for path in paths.values()}
    ended = subprocess.run(
        [sys.executable, "-c", _CUT_SHORT, *paths.values()], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    messages = ended.stdout.splitlines()
    assert len(messages) == len(paths)
    for ((_, end), path), message in zip(paths.items(), messages, strict=True):
        assert f"{path}: tensor '{tensors[end]}': the file was cut short" in message
        assert f"(found {path.stat().st_size} bytes, expected {sizes[path]} bytes)" in message


def test_a_disk_that_cannot_be_read(pair, monkeypatch):
    def preadv(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(GGUFError, match="tensor 't0': the file cannot be read: Input/output error"):
        with Stream():
            torch.empty(pair[0].shape).copy_(pair[0])


def test_short_reads_go_on(pair, monkeypatch):
    expected = pair[0].dequantize()
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: original(fd, [b[0][:1000]], at))
    assert torch.equal(pair[0].dequantize(), expected)


# --- memory -----------------------------------------------------------------------------------

_PEAK = """
import sys
import torch
from ascend_gguf.srt.model_loader.weight_utils import gguf_quant_weights_iterator
from ascend_gguf.weights.load_stream import Stream

def peak():  # VmHWM counts what is mapped from files too
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

path, count = sys.argv[1], int(sys.argv[2])
names = {f"t{i}.weight": f"m{i}.weight" for i in range(count)}
parameter = torch.ones(1024, 4096, dtype=torch.bfloat16)

def load(names):
    with Stream(8) as stream:
        for _, matrix in gguf_quant_weights_iterator(path, names):
            parameter.copy_(matrix)  # decoded in place
            parameter[:, 1:-1].copy_(matrix[:, 1:-1])  # decoded, then cut
    return stream.finished

load({"t0.weight": names["t0.weight"]})  # with the compiler, and what torch imports
before = peak()
print(load(names), peak() - before)
"""


@pytest.mark.slow
def test_peak_of_memory(tmp_path):
    """0.75 GB of blocks, twice, through 8 threads; the largest slice is 4.5 MB.

    300 MB are allowed.  The data is a hole in the file.
    """
    count, path = 170, tmp_path / "m.gguf"
    nbytes = 1024 * 4096 // 32 * 34
    writer = gguf.GGUFWriter(path, "qwen3")
    for i in range(count):
        q8_0 = GGMLQuantizationType.Q8_0
        writer.add_tensor_info(
            f"t{i}.weight", (1024, 4096 // 32 * 34), np.dtype(np.uint8), nbytes, q8_0
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 31 + count * nbytes)
    ended = subprocess.run(
        [sys.executable, "-c", _PEAK, path, str(count)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    finished, more = map(int, ended.stdout.split())
    print(f"{count * nbytes / 1e9:.1f} GB loaded; {more / 1e6:.0f} MB more at the peak")
    assert finished == 2 * count
    assert more < 300e6
