"""The compiled decoders: their bits, their threads, and the processors they are compiled for."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from llvmlite import binding as llvm

from ascend_gguf import dequantize
from ascend_gguf.codegen import kernel as codegen_kernel
from ascend_gguf.codegen import processor
from ascend_gguf.codegen.compile import traced
from ascend_gguf.decoders import dequantize as decoding
from ascend_gguf.decoders import rows
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType

CHECKOUT = Path(__file__).parents[2]

with np.load(Path(__file__).parents[1] / "data" / "golden.npz") as _file:
    GOLDEN = dict(_file)

DECODABLE = [kind for kind in BLOCK_TYPES.values() if kind.decoder]
EVERY_TYPE = pytest.mark.parametrize("kind", DECODABLE, ids=lambda kind: kind.name)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def random_blocks(kind: BlockType, rows: int, blocks: int) -> np.ndarray:
    """Any bytes: NaN, infinities and subnormals among the scales."""
    generator = np.random.default_rng(int(kind.ggml_type))
    return generator.integers(0, 256, (rows, blocks * kind.type_size), dtype=np.uint8)


def reference(kind: BlockType, blocks: np.ndarray) -> np.ndarray:
    """float32 values by gguf-py, or by a formula for the types it does not decode."""
    groups = blocks.reshape(-1, kind.type_size)
    with np.errstate(all="ignore"):
        if kind.name == "Q1_0":
            scale = groups[:, :2].copy().view(np.float16).astype(np.float32)
            signs = np.unpackbits(groups[:, 2:], axis=1, bitorder="little").astype(bool)
            values = np.where(signs, scale, -scale)
        else:
            values = quants.dequantize(blocks, kind.ggml_type)
    return values.astype(np.float32, copy=False).reshape(blocks.shape[0], -1)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view({4: torch.int32, 2: torch.int16}[tensor.itemsize])


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal in every bit, but for what kind of NaN one is."""
    assert actual.dtype is expected.dtype
    assert actual.shape == expected.shape
    both_nan = actual.isnan() & expected.isnan()
    different = (bits(actual) != bits(expected)) & ~both_nan
    assert not different.any(), f"{int(different.sum())} of {different.numel()} differ"


def in_new_process(
    code: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "python"), **environment},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


# What the decoders compute


@EVERY_TYPE
@EVERY_DTYPE
def test_random_bytes(kind, dtype):
    blocks = random_blocks(kind, 4, 64 if kind.block_size > 1 else 4099)
    expected = torch.from_numpy(reference(kind, blocks)).to(dtype)
    assert_same_bits(dequantize(blocks, kind.ggml_type, dtype), expected)


def test_all_types_of_golden_blocks_decode():
    names = {name.split(".")[0] for name in GOLDEN}
    assert names <= {kind.name for kind in DECODABLE}
    assert not {"Q8_1", "Q8_K"} & {kind.name for kind in DECODABLE}  # of activations


@pytest.mark.parametrize("name", ["F16", "BF16"])
@EVERY_DTYPE
def test_every_number_of_16_bits(name, dtype):
    kind = BLOCK_TYPES[GGMLQuantizationType[name]]
    blocks = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)[None]
    expected = torch.from_numpy(reference(kind, blocks)).to(dtype)
    assert_same_bits(dequantize(blocks, kind.ggml_type, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_rounding_around_every_16_bit_number(dtype):
    """Each number's own bits, its two neighbours in float32, and both sides of the midpoints."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    step = {torch.float16: 1 << 12, torch.bfloat16: 1 << 15}[dtype]
    patterns = numbers.view(torch.int32)[:, None] + torch.tensor(
        [0, 1, -1, step - 1, step, step + 1], dtype=torch.int32
    )
    numbers = patterns.view(torch.float32)
    blocks = numbers.contiguous().view(torch.uint8)
    assert_same_bits(dequantize(blocks, GGMLQuantizationType.F32, dtype), numbers.to(dtype))


@EVERY_TYPE
def test_one_block_and_none(kind):
    blocks = random_blocks(kind, 1, 1)
    expected = torch.from_numpy(reference(kind, blocks))
    assert_same_bits(dequantize(blocks, kind.ggml_type), expected)
    assert_same_bits(dequantize(blocks[0], kind.ggml_type), expected[0])
    assert dequantize(blocks[:0], kind.ggml_type).shape == (0, kind.block_size)
    assert dequantize(blocks[:, :0], kind.ggml_type).shape == (1, 0)


# Shapes, strides, threads


@pytest.fixture
def small_pieces(monkeypatch):
    """So that a few rows are work for several threads."""
    monkeypatch.setattr(decoding, "WEIGHTS_PER_PIECE", 512)


@EVERY_TYPE
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_do_not_change_a_bit(kind, threads, small_pieces):
    blocks = random_blocks(kind, 37, 5 if kind.block_size > 1 else 513)
    expected = torch.from_numpy(reference(kind, blocks)).bfloat16()
    decoded = dequantize(blocks, kind.ggml_type, torch.bfloat16, threads=threads)
    assert_same_bits(decoded, expected)


@pytest.mark.parametrize("threads", [0, -1])
def test_number_of_threads_must_be_positive(threads):
    with pytest.raises(ValueError, match=f"threads must be at least 1, got {threads}"):
        dequantize(np.zeros((1, 144), np.uint8), 12, threads=threads)


LAYOUTS = {
    "whole": lambda t: t,
    "rows apart": lambda t: t[:, ::2],
    "columns of a wider one": lambda t: t[..., : t.shape[-1] // 2],
    "part of each matrix": lambda t: t[:, 1:4],
    "swapped": lambda t: t.transpose(0, 1),
    "every third": lambda t: t[::3, ::2, t.shape[-1] // 2 :],
    "a single row": lambda t: t[1:2, 2:3],
    "expanded": lambda t: t[:1].expand(3, -1, -1),
}


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F32"])
@pytest.mark.parametrize("source", LAYOUTS.values(), ids=LAYOUTS)
def test_strided_blocks_and_out(name, source, small_pieces):
    kind = BLOCK_TYPES[GGMLQuantizationType[name]]
    blocks = torch.from_numpy(random_blocks(kind, 4 * 6, 4)).view(4, 6, -1)
    blocks = source(blocks)
    expected = dequantize(blocks.contiguous(), kind.ggml_type)
    assert_same_bits(dequantize(blocks, kind.ggml_type), expected)

    a, b, n = expected.shape
    around = {
        "a narrowed parameter": lambda p: p[:, 1 : 1 + b, 3 : 3 + n],
        "interleaved": lambda p: p[:, 1 : 1 + 2 * b : 2, :n],
        "swapped": lambda p: p.view(-1)[: a * b * n].view(b, a, n).transpose(0, 1),
    }
    for view in around.values():
        parameter = torch.full((a, 2 * b + 2, n + 7), 7.0)
        untouched = torch.full_like(parameter, 7.0)
        out = view(parameter)
        assert dequantize(blocks, kind.ggml_type, out=out, threads=3) is out
        assert_same_bits(out, expected)
        view(untouched).copy_(expected)
        assert_same_bits(parameter, untouched)


def test_out_is_written_without_a_temporary(monkeypatch):
    out = torch.empty(16, 3000, dtype=torch.bfloat16)[:, 100:1124]
    blocks = GOLDEN["Q6_K.blocks"]
    for name in ("empty", "empty_like", "zeros"):
        monkeypatch.setattr(torch, name, None)
    monkeypatch.setattr(np, "ascontiguousarray", None)
    dequantize(blocks, GGMLQuantizationType.Q6_K, out=out)
    assert_same_bits(out, torch.from_numpy(GOLDEN["Q6_K.values"]).bfloat16())


def test_negative_strides_and_read_only_arrays():
    blocks = GOLDEN["Q5_0.blocks"][::-1]
    blocks.flags.writeable = False
    expected = torch.from_numpy(GOLDEN["Q5_0.values"][::-1].copy())
    assert_same_bits(dequantize(blocks, GGMLQuantizationType.Q5_0), expected)


def test_default_device_does_not_matter():
    with torch.device("meta"):
        decoded = dequantize(GOLDEN["Q5_0.blocks"], GGMLQuantizationType.Q5_0)
    assert_same_bits(decoded, torch.from_numpy(GOLDEN["Q5_0.values"]))


def test_many_callers_at_once(small_pieces):
    """More callers than the pool has threads: nobody waits for a helper that never begins."""
    blocks = GOLDEN["Q4_0.blocks"]
    expected = torch.from_numpy(GOLDEN["Q4_0.values"])
    with ThreadPoolExecutor(40) as callers:
        results = callers.map(
            lambda _: dequantize(blocks, GGMLQuantizationType.Q4_0, threads=8), range(200)
        )
        for decoded in results:
            assert_same_bits(decoded, expected)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_threads_after_fork(small_pieces):
    """A forked child has none of its parent's threads: it must not wait for them."""
    blocks, expected = GOLDEN["Q4_K.blocks"], torch.from_numpy(GOLDEN["Q4_K.values"])
    decoded = dequantize(blocks, GGMLQuantizationType.Q4_K, threads=3)  # starts threads
    assert_same_bits(decoded, expected)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Another type too: its code is compiled here.
            for kind in ("Q4_K", "Q5_1"):
                decoded = dequantize(
                    GOLDEN[f"{kind}.blocks"], GGMLQuantizationType[kind], threads=3
                )
                assert_same_bits(decoded, torch.from_numpy(GOLDEN[f"{kind}.values"]))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Compiling


@pytest.fixture
def plain_processor(monkeypatch) -> None:
    """Compiles for the least of x86-64: short vectors, no 16-bit floats."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86-64 processor: it runs code for the least of them")
    monkeypatch.setattr(processor, "HALF_INSTRUCTIONS", False)
    monkeypatch.setattr(processor, "BFLOAT_INSTRUCTIONS", False)
    processor.host_machine()  # makes LLVM ready
    triple = llvm.Target.from_default_triple()
    monkeypatch.setattr(
        processor, "host_machine", lambda: triple.create_target_machine(cpu="x86-64", opt=3)
    )
    monkeypatch.setattr(rows, "kernel", rows.kernel.__wrapped__)


@pytest.mark.slow
@EVERY_TYPE
@EVERY_DTYPE
def test_bits_on_a_plain_processor(kind, dtype, plain_processor):
    test_random_bytes(kind, dtype)


@EVERY_DTYPE
def test_every_rounding_on_a_plain_processor(dtype, plain_processor):
    test_every_number_of_16_bits("F16", dtype)
    test_every_number_of_16_bits("BF16", dtype)
    if dtype != torch.float32:
        test_rounding_around_every_16_bit_number(dtype)


#: Instructions a weight, in the loop over blocks.
MOST_FOR_ARM = {"IQ3_S": 5.0, "Q5_0": 3.3, "IQ4_XS": 2.5, "MXFP4": 4.3}


def instructions_of_loop(assembly: str) -> int:
    """In the longest stretch that is jumped back over."""
    places: dict[str, int] = {}
    longest = count = 0
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            places[label[1]] = count
        elif re.match(r"\s+[a-z]", line):
            count += 1
            target = re.search(r"\.LBB\w+", line)
            longest = max(longest, count - places.get(target[0], count) if target else 0)
    return longest


def test_code_for_arm(monkeypatch):
    """Compiles; calls nothing; multiplies and adds apart, as bit equality demands; and is short
    where lanes are taken from bits and from tables.
    """
    monkeypatch.setattr(processor, "IS_ARM", True)
    monkeypatch.setattr(processor, "HALF_INSTRUCTIONS", True)
    monkeypatch.setattr(processor, "BFLOAT_INSTRUCTIONS", False)
    modules: list[str] = []
    monkeypatch.setattr(
        codegen_kernel, "compiled", lambda *kernel: modules.append(str(traced(*kernel)))
    )
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        triple = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except RuntimeError:
        pytest.skip("needs an llvmlite that compiles for AArch64, as its wheels do")
    machine = triple.create_target_machine(cpu="tsv110", opt=3)
    for kind in DECODABLE:
        rows.kernel.__wrapped__(kind, torch.bfloat16)
        assembly = machine.emit_assembly(llvm.parse_assembly(modules.pop()))
        assert "fmul" in assembly or kind.block_size == 1 or kind.name == "Q1_0"
        assert re.findall(r"\b(bl\s|fml[as]|fmadd|fmsub|fnmadd)", assembly) == [], kind.name
        if kind.name in MOST_FOR_ARM:
            length = instructions_of_loop(assembly) / kind.block_size
            assert length <= MOST_FOR_ARM[kind.name], kind.name


def test_first_decode_does_not_keep_a_start_waiting():
    """No compiler is imported before there is work.  Nothing is kept on disk: compiling what a
    Q4_K_M model uses must take no time to speak of.
    """
    code = """
        import sys, time, torch
        from ascend_gguf import dequantize
        assert not {"numba", "llvmlite"} & set(sys.modules)
        start = time.thread_time()
        from ascend_gguf.decoders.rows import kernel
        from ascend_gguf.ggml_types import BLOCK_TYPES
        for kind in BLOCK_TYPES.values():
            if kind.name in ("F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"):
                kernel(kind, torch.bfloat16)
        assert "numba" not in sys.modules
        print(time.thread_time() - start)
    """
    assert float(in_new_process(code).stdout) < 1.0
