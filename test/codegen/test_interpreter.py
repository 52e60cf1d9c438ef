"""What kernels mean: NumPy's results, operation by operation, are those of the machine code."""

from __future__ import annotations

import contextlib
import functools
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from ascend_gguf import BlockTensor, dequantize
from ascend_gguf.codegen import (
    BF16,
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    Kernel,
    Value,
    exp,
    exp2,
    fold,
    load,
    local,
    loop,
    max_of,
    multiply_add,
    pointer,
    processor,
    sigmoid,
    softplus,
    sqrt,
    store,
    sum_of,
    switch,
    when,
)
from ascend_gguf.codegen.backend import running
from ascend_gguf.codegen.interpreter import NumPy
from ascend_gguf.cpu import kernel_sequence, prefill_attention
from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.cpu.causal_conv import causal_conv1d_fn
from ascend_gguf.cpu.copies import convert, copy_rows
from ascend_gguf.cpu.gated_rows import gated_rms_norm, multiply_by_sigmoid
from ascend_gguf.cpu.linear import BlocksLinear
from ascend_gguf.cpu.paged_attention import Tokens, attend
from ascend_gguf.cpu.recurrent_state import States, delta_rule, state_space
from ascend_gguf.cpu.row_ops import gelu_tanh_and_mul, rms_norm, rotate, silu_and_mul
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType
from ascend_gguf.npu.experts import Grouped, GroupedInt4, GroupedNibblePlanes
from ascend_gguf.npu.int8 import Int8, RequantizedInt8
from ascend_gguf.npu.nibble_planes import NibblePlanes, PlanesRows, WidePlanes
from ascend_gguf.weights.layout import Piece, Weight
from random_model import random_blocks

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
KINDS = {kind.name: kind for kind in BLOCK_TYPES.values() if kind.decoder}


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Inside, kernels are interpreted, not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Kernel, "run", lambda self, *numbers, most_threads=None: self.interpret(*numbers)
        )
        patch.setattr(Kernel, "__call__", lambda self, *numbers: self.interpret(1, *numbers))
        yield


def both(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What machine code gives, and what the interpreter gives."""
    compiled = function()
    with interpreted():
        return compiled, function()


def assert_same(function: Callable[[], torch.Tensor]) -> None:
    """In every bit, but for what kind of NaN one is."""
    a, b = both(function)
    bits = {4: torch.int32, 2: torch.int16}[a.itemsize]
    assert bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


def assert_near(function: Callable[[], torch.Tensor]) -> None:
    """But for products added up in one rounding or two."""
    a, b = both(function)
    torch.testing.assert_close(b, a, rtol=1e-5 if a.dtype == torch.float32 else 1e-2, atol=1e-5)


# Decoders


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_decoder(kind: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes, for this processor and for one without instructions for 16-bit floats."""
    generator = np.random.default_rng(int(kind.ggml_type))
    count = 1 if kind.block_size > 1 else 65
    blocks = generator.integers(0, 256, (1, count * kind.type_size), dtype=np.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(lambda dtype=dtype: dequantize(blocks, kind.ggml_type, dtype))
    expected = dequantize(blocks, kind.ggml_type, torch.bfloat16)
    monkeypatch.setattr(processor, "HALF_INSTRUCTIONS", False)
    monkeypatch.setattr(processor, "BFLOAT_INSTRUCTIONS", False)
    with interpreted():
        plain = dequantize(blocks, kind.ggml_type, torch.bfloat16)
    assert torch.equal(plain.nan_to_num(7), expected.nan_to_num(7))


# Operations


def run_both(kernel: Kernel, out: np.ndarray, *arrays: np.ndarray | float) -> list[np.ndarray]:
    """What both write to ``out``, the kernel's last parameter."""
    results = []
    for run in (kernel.run, kernel.interpret):
        result = np.zeros_like(out)
        given = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in (*arrays, result)]
        run(1, *given)
        results.append(result)
    return results


WHOLE = np.array([0, 1, 5, 127, 128, 200, 255, 250] * 2, np.uint8)


@pytest.mark.parametrize("kind", [I8, I16, I32, I64], ids=lambda kind: kind.name)
def test_whole_numbers(kind) -> None:
    """Modulo the width, with and without a sign."""

    def write(tile: Value, a: Value, b: Value, out: Value) -> None:
        x, y = load(a, LANES), load(b, LANES)
        results = [x + y, x - 3, 3 - x, x * y, x & y, x | y, x ^ y, x << 2, x >> 1, -x]
        results += [x.shift_signed(1), x // (y | 1), x % (y | 1)]
        bits = [x < y, x <= 5, x > y, x >= y, x.below(y), x.differs(y)]
        results += [bit.select(x, y) for bit in bits]
        results += [x[3:11].concat(y[:8]), x[2].splat(LANES), x.lookup(range(8))]
        results += [x.field(1, 3), x.field(2, 4, 1), x.negate_where(load(b.cast(I16)))]
        for i, result in enumerate(results):
            store(out + i * LANES, result)

    dtype = np.dtype(f"u{kind.nbytes}")
    numbers = np.concatenate([WHOLE[:8].astype(np.int8).astype(dtype), WHOLE[8:].astype(dtype)])
    others = numbers[::-1].copy()
    kernel = Kernel(
        f"whole_{kind.name}", write, a=pointer(kind), b=pointer(kind), out=pointer(kind)
    )
    a, b = run_both(kernel, np.zeros((25, LANES), dtype), numbers, others)
    np.testing.assert_array_equal(a, b)
    assert len(np.unique(a, axis=0)) > 15


EXTREMES = [0.0, -0.0, 1e-40, -1e-40, 1e38, -3e38, np.inf, -np.inf, np.nan, 65504.0, 65520.0, 1e-7]


def test_floats() -> None:
    def write(tile: Value, a: Value, b: Value, scale: Value, out: Value) -> None:
        x, y = load(a, LANES), load(b, LANES)
        results = [x + y, x - y, x * y, x / y, 1.0 / x, -x, x * scale, 2.0 - y]
        results += [(x < y).select(x, y), x.differs(y).select(x, 0.0), (x >= 1.0).select(y, x)]
        results += [
            load(a + 8).splat(LANES),
            (y * 3.0).to_int().to_float(),
            x.bitcast(I32).to_float(),
        ]
        results += [
            sum_of(y).splat(LANES),
            max_of(y).splat(LANES),
            sqrt(sum_of(y * y)).splat(LANES),
        ]
        for i, result in enumerate(results):
            store(out + i * LANES, result)

    numbers = np.array([*EXTREMES, 0.1, -7.5, 3.0, 1000.0], np.float32)
    others = np.linspace(-3, 5, LANES, dtype=np.float32)
    element = pointer(F32)
    kernel = Kernel("floats", write, a=element, b=element, scale=F32, out=element)
    a, b = run_both(kernel, np.zeros((17, LANES), np.float32), numbers, others, 0.75)
    np.testing.assert_array_equal(a.view(np.uint32)[~np.isnan(a)], b.view(np.uint32)[~np.isnan(b)])


@pytest.mark.parametrize(
    "function", [exp, exp2, sigmoid, softplus, lambda x: multiply_add(x, x, x)]
)
def test_functions_of_floats(function: Callable[[Value], Value]) -> None:
    def write(tile: Value, x: Value, out: Value) -> None:
        for i in loop(0, 512, LANES):
            store(out + i, function(load(x + i, LANES)))

    kernel = Kernel("function", write, x=pointer(F32), out=pointer(F32))
    x = np.linspace(-120, 0, 512, dtype=np.float32)
    a, b = run_both(kernel, x, x)
    np.testing.assert_allclose(a, b, rtol=3e-7)


@pytest.mark.parametrize("kind", [F16, BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("normal", [False, True])
def test_rounding(kind, normal: bool) -> None:
    """Around every 16-bit float; of normal values by the processor's instruction."""

    def write(tile: Value, x: Value, out: Value) -> None:
        for i in loop(0, 1 << 16, 64):
            store(out + i, load(x + i, 64), normal=normal)

    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    x = (bits + np.random.default_rng(0).integers(0, 1 << 16, bits.shape, np.uint32)).view(
        np.float32
    )
    x[~np.isfinite(x) if normal else np.isnan(x)] = np.nan if not normal else 1.0
    kernel = Kernel("rounding", write, x=pointer(F32), out=pointer(kind))
    a, b = run_both(kernel, np.zeros(1 << 16, np.uint16), x)
    np.testing.assert_array_equal(a, b)


def test_control() -> None:
    """Loops that run and that do not, folds, branches, cases, memory of the thread's own."""

    def write(tile: Value, start: Value, stop: Value, out: Value) -> None:
        for i in loop(start, stop, 3):
            when(i % 2 < 1, functools.partial(store, out + i, i), lambda i=i: store(out + i, -i))
        total, last = fold(start, stop, 2, [stop, stop], lambda i, v: [v[0] + i, i])
        memory = local(I64, 4)
        store(memory + 1, total)
        store(out + 30, load(memory + 1))
        store(out + 31, last)
        switch(stop - start, range(1, 9), lambda n: store(out + 32, start * n))

    kernel = Kernel("control", write, start=I64, stop=I64, out=pointer(I64))
    for start, stop in ((0, 8), (3, 25), (5, 5), (7, 2)):
        a, b = run_both(kernel, np.zeros(33, np.int64), start, stop)
        np.testing.assert_array_equal(a, b)


def test_a_value_is_no_condition_of_python() -> None:
    def write(tile: Value, out: Value) -> None:
        if tile < 3:
            store(out, tile)

    with pytest.raises(TypeError, match="when"):
        Kernel("wrong", write, out=pointer(I64))


# Kernels


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("Q4_K", torch.float32), ("Q4_K", torch.bfloat16), ("IQ3_S", torch.bfloat16)],
    ids=str,
)
def test_gemv_and_gemm(name: str, dtype: torch.dtype) -> None:
    kind = KINDS[name]
    blocks, _ = random_blocks(np.random.default_rng(0), name, (5, 256))
    matrix = BlockTensor(torch.from_numpy(blocks), kind.ggml_type)
    pieces = [Piece(0, 0, 0, matrix)]
    weight = Blocks.allocate(Weight(None, 5, 256, torch.bfloat16, pieces))
    weight.put(pieces[0])
    torch.manual_seed(0)
    for count in (1, 5):
        x = torch.randn(count, 256).to(dtype)
        assert_near(lambda x=x: BlocksLinear(torch.float32).linear(x, weight))


@EVERY_DTYPE
def test_row_operations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(3, 96), torch.randn(3, 96), torch.rand(96)
    x, residual = x.to(dtype), residual.to(dtype)
    assert_near(lambda: torch.stack(rms_norm(x, weight, 1e-6, residual, plus_one=True)))
    assert_near(lambda: silu_and_mul(x))
    assert_near(lambda: gelu_tanh_and_mul(x))
    heads, angles = x.view(3, 2, 48), torch.rand(9, 32)
    for interleaved in (False, True):
        positions = torch.tensor([8, 0, 3])
        assert_near(lambda i=interleaved, p=positions: rotate(heads, p, angles, interleaved=i))


@EVERY_DTYPE
def test_gated_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gate, weight = *torch.randn(2, 3, 96).to(dtype), torch.rand(96)
    for first in (False, True):
        assert_near(lambda f=first: gated_rms_norm(x, weight, gate, 1e-6, groups=2, gate_first=f))
    assert_near(lambda: gated_rms_norm(x, weight, gate, 1e-6, activation="sigmoid"))

    def multiplied() -> torch.Tensor:
        out = x.clone()
        multiply_by_sigmoid(out, gate)
        return out

    assert_near(multiplied)


@EVERY_DTYPE
def test_recurrent_states(dtype: torch.dtype) -> None:
    """A token of each request; then the states."""
    torch.manual_seed(0)
    vectors, per_head = torch.randn(3, 2, 4, 24).to(dtype), torch.randn(4, 2, 4)
    cache, slots = torch.randn(5, 4, 24, 24), torch.tensor([4, 1])

    def done(step: Callable[[States], torch.Tensor]) -> torch.Tensor:
        states = States(cache.clone(), slots)
        return torch.cat((step(states).float().flatten(), states.cache.flatten()))

    def state_space_step(states: States) -> torch.Tensor:
        (x, B, C), (dt, A, *_) = vectors, per_head
        state_space(
            x, dt, A[0], B[:, :2], C[:, :2], A[1], dt[0], states, out := torch.empty_like(x)
        )
        return out

    a, b, A_log, dt_bias = *per_head[:2], *per_head[2]
    q, k, v = vectors[0][:, :2], vectors[1][:, :2], vectors[2]
    assert_near(lambda: done(lambda states: delta_rule(q, k, v, a, b, A_log, dt_bias, states)))
    steps, biases = torch.randn(3, 96).split([2, 1])
    assert_near(lambda: done(lambda states: delta_rule(q, k, v, steps, b, A_log, biases, states)))
    assert_near(lambda: done(state_space_step))


@EVERY_DTYPE
def test_convolution(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 48).to(dtype), torch.randn(48, 4), torch.randn(48)
    states, slots = torch.randn(5, 48, 3).to(dtype), torch.tensor([4, 1])
    has = torch.tensor([True, False])

    def convolved() -> torch.Tensor:
        cache = states.clone()
        arguments = {"conv_states": cache, "cache_indices": slots, "has_initial_state": has}
        starts = torch.tensor([0, 5, 7])
        out = causal_conv1d_fn(
            x.T, weight, bias, activation="silu", query_start_loc=starts, **arguments
        )
        return torch.cat((out.flatten(), cache.flatten()))

    assert_near(convolved)


@EVERY_DTYPE
def test_copies(dtype: torch.dtype) -> None:
    x = torch.randn(3, 80).to(dtype)

    def copied(places: torch.Tensor | None) -> torch.Tensor:
        out = torch.zeros(5, 80, dtype=dtype)
        copy_rows(x[:, :72], out[:, :72], places)
        return out

    def converted() -> torch.Tensor:
        out = torch.empty(3, 80, dtype=torch.float16)
        convert(x, out)
        return out

    assert_same(lambda: copied(None))
    assert_same(lambda: copied(torch.tensor([4, 0, 2])))
    assert_same(converted)


@EVERY_DTYPE
@pytest.mark.parametrize("tokens", [1, 6])
def test_attention(dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token, and where the processor has instructions for it a block of them."""
    torch.manual_seed(0)
    query, cache = torch.randn(tokens, 4, 32).to(dtype), torch.randn(2, 90, 2, 32).to(dtype)
    slots = torch.randperm(90, dtype=torch.int32)[None, :80]
    lengths = torch.arange(70, 70 + tokens)
    used: list[bool] = []
    is_for_blocks = prefill_attention.takes(query, cache[0])
    kernel = prefill_attention.kernel
    monkeypatch.setattr(
        prefill_attention, "kernel", lambda *shape: used.append(True) or kernel(*shape)
    )

    def attended() -> torch.Tensor:
        rows = Tokens(torch.zeros(tokens, dtype=torch.int64), lengths)
        return attend(query, cache[0], cache[1], slots, rows, 0.2, window=65)

    assert_near(attended)
    assert bool(used) == (is_for_blocks and tokens > 1)


@pytest.mark.parametrize(
    ("layout", "name", "rows"),
    [
        (Int8, "Q4_K", 2),
        (RequantizedInt8, "Q6_K", 2),
        (PlanesRows, "Q8_0", 2),
        (PlanesRows, "Q6_K", 2),
        (NibblePlanes, "Q6_K", 8),
        (WidePlanes, "Q8_0", 64),
        # Whole lines of the cache, and what is left.
        (GroupedInt4, "Q4_0", 136),
        (GroupedNibblePlanes, "Q6_K", 136),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_conversions(layout: type, name: str, rows: int) -> None:
    """To what an NPU's operators take."""
    experts = 1 if issubclass(layout, Grouped) else None
    blocks, _ = random_blocks(np.random.default_rng(0), name, (rows, 256))
    pieces = [Piece(0, 0, 0, BlockTensor(torch.from_numpy(blocks), KINDS[name].ggml_type))]
    weight = Weight(experts, rows, 256, torch.bfloat16, pieces)
    assert layout.unsupported_reason(weight) is None

    def converted() -> list[torch.Tensor]:
        result = layout.allocate(weight)
        result.put(pieces[0])
        return list(result.tensors.values())

    expected = converted()
    with interpreted():
        assert all(map(torch.equal, converted(), expected))


def test_kernel_sequence() -> None:
    """The sequence, interpreted, calls the machine code of its kernels."""

    def write(tile: Value, out: Value) -> None:  # noqa: ARG001
        store(out, load(out) * 2 + 1)

    out = np.array([1], np.int64)
    kernel = Kernel("twice", write, out=pointer(I64))
    launch = array("q", [0, 0, 1, out.ctypes.data])
    sequence = kernel_sequence.KernelSequence([(kernel.code, launch)] * 3)
    sequence.run()
    assert out[0] == 15
    sequence._numbers[sequence._heads] = 0
    with running(NumPy()):
        address = np.array([sequence._list.buffer_info()[0]], np.uint64)
        kernel_sequence.run_sequence(Value(address, pointer(I64)))
    assert out[0] == 127
