"""Products with weights that are still blocks, against the same with decoded weights in float64."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from llvmlite import binding as llvm

from ascend_gguf import BlockTensor, dequantize
from ascend_gguf.codegen import processor, threads
from ascend_gguf.cpu import gemm, gemv, matmul
from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.cpu.experts import apply_experts, silu_and_mul
from ascend_gguf.cpu.graph import capture
from ascend_gguf.cpu.linear import BlocksExperts, BlocksLinear
from ascend_gguf.cpu.matmul import Matmul, Product
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from random_model import random_blocks

COLS = 512
DECODABLE = [kind for kind in BLOCK_TYPES.values() if kind.decoder]
#: Types of which there are real blocks.
KINDS = {kind.name: kind for kind in DECODABLE}
PLAIN_KINDS = {kind for kind in DECODABLE if not kind.is_quantized}
EVERY_TYPE = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
#: One of each way to multiply: coded, scaled, plain floats.
SOME_TYPES = pytest.mark.parametrize(
    "kind", [KINDS[name] for name in ("Q4_K", "Q8_0", "IQ3_S", "F16")], ids=lambda kind: kind.name
)
#: What a result may be off, relative to the norm of all; bfloat16 rounds the result, and weights.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def matrix(kind: BlockType, rows: int, cols: int = COLS, seed: int = 0) -> BlockTensor:
    blocks, _ = random_blocks(np.random.default_rng(seed), kind.name, (rows, cols))
    return BlockTensor(torch.from_numpy(blocks), kind.ggml_type)


def vectors_of(count: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, cols, generator=torch.Generator().manual_seed(count)).to(dtype)


def layout_of(
    *pieces: Piece, experts: int | None = None, dtype=torch.bfloat16, rows=None
) -> Blocks:
    rows = rows or max(piece.row + len(piece.data) for piece in pieces)
    weight = Weight(experts, rows, pieces[0].data.shape[1], dtype, pieces)
    # A weight that is not quantized it would rather not hold, but can.
    layout = Blocks.allocate(weight) if weight.kinds <= PLAIN_KINDS else allocated(weight, [Blocks])
    for piece in pieces:
        layout.put(piece)
    return layout


def linear(x: torch.Tensor, *parts: BlockTensor, bias=None) -> torch.Tensor:
    row, pieces = 0, []
    for part in parts:
        pieces.append(Piece(0, row, 0, part))
        row += len(part)
    return BlocksLinear().linear(x, layout_of(*pieces), bias)


def assert_near(ours: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    expected = x.double() @ weights.double().T
    assert ours.shape == expected.shape
    assert ours.dtype is x.dtype
    assert (ours.double() - expected).norm() <= TOLERANCE[x.dtype] * expected.norm()


@EVERY_TYPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_type(kind, dtype):
    weights = matrix(kind, 37)
    for count in (1, 5):
        x = vectors_of(count, COLS, dtype)
        assert_near(linear(x, weights), x, weights.dequantize())


@SOME_TYPES
@EVERY_DTYPE
@pytest.mark.parametrize("count", [0, 2, 3, 16, 70, 513])
def test_any_number_of_vectors(kind, dtype, count):
    weights, x = matrix(kind, 37), vectors_of(count, COLS, dtype)
    assert_near(linear(x, weights), x, weights.dequantize())


@EVERY_TYPE
def test_weights_are_not_rounded_for_few_vectors(kind):
    """Bfloat16 vectors meet exact weights: only float32 sums are off."""
    count = matmul.most_gemv_vectors(kind, torch.bfloat16)
    weights, x = matrix(kind, 16), vectors_of(count, COLS, torch.bfloat16)
    out = torch.empty(len(x), 16)
    blocks = weights.blocks.unsqueeze(0)
    Matmul(kind, blocks, [Product(0, 0, 0, len(x))], x.dtype, out.dtype, 16).run(x, out)
    expected = x.double() @ weights.dequantize().double().T
    assert (out.double() - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("kind", DECODABLE, ids=lambda kind: kind.name)
def test_random_bytes(kind):
    """NaN where a weight of the row is NaN, and nowhere else; any scales, subnormal ones too."""
    generator = np.random.default_rng(int(kind.ggml_type))
    nbytes = kind.row_bytes(256)
    blocks = torch.from_numpy(generator.integers(0, 256, (64, nbytes), dtype=np.uint8))
    weights = dequantize(blocks, kind.ggml_type).double()
    rows = weights.isfinite().all(1) & (weights.abs().amax(1) < 1e30)
    assert rows.any() or not kind.is_quantized
    for count in (1, 5):
        x = vectors_of(count, 256, torch.float32)
        ours = linear(x, BlockTensor(blocks, kind.ggml_type)).double()
        expected, sizes = x.double() @ weights.T, x.double().abs() @ weights.abs().T
        assert not ours[:, weights.isnan().any(1)].isfinite().any()
        error = (ours - expected)[:, rows].abs()
        # An offset and what it is taken from may be larger than the weights: up to 64 times.
        assert (error <= 64 * 2e-6 * sizes[:, rows]).all()


@EVERY_DTYPE
@pytest.mark.parametrize("count", [1, 5])
def test_parts_of_several_types(dtype, count):
    sizes = {"Q4_K": 3, "Q6_K": 1, "F16": 7, "IQ2_S": 9, "Q5_1": 2}
    parts = [matrix(KINDS[name], rows, seed=rows) for name, rows in sizes.items()]
    x = vectors_of(count, COLS, dtype)
    assert_near(linear(x, *parts), x, torch.cat([part.dequantize() for part in parts]))


@pytest.mark.parametrize("count", [1, 5])
def test_strided_vectors_of_more_dimensions(count):
    weights = matrix(KINDS["Q4_K"], 8)
    x = torch.cat([vectors_of(2 * count, COLS, torch.float32)] * 2, dim=1)[:, COLS:]
    assert not x.is_contiguous()
    ours = linear(x.unflatten(0, (2, count)), weights)
    assert ours.shape == (2, count, 8)
    assert_near(ours.flatten(0, 1), x, weights.dequantize())


@EVERY_DTYPE
def test_bias(dtype):
    weights, x = matrix(KINDS["Q4_K"], 8), vectors_of(3, COLS, dtype)
    bias = torch.randn(8).to(dtype)
    assert torch.equal(linear(x, weights, bias=bias), linear(x, weights) + bias)


def test_vectors_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match=r"vectors must be one of .*, not torch\.float64"):
        linear(torch.zeros(1, COLS, dtype=torch.float64), matrix(KINDS["Q4_K"], 4))


# Columns cut inside a block


@EVERY_TYPE
@pytest.mark.parametrize("count", [1, 5])
def test_columns_cut_inside_blocks(kind, count):
    whole, x = matrix(kind, 7, 3 * 256), vectors_of(count, 3 * 256, torch.float32)
    for start, stop in [(0, 384), (384, 768), (100, 161), (300, 301)]:
        part, vectors = whole[:, start:stop], x[:, start:stop]
        assert_near(linear(vectors, part), vectors, whole.dequantize()[:, start:stop])


# The layout


def test_bytes_are_the_files():
    parts = [matrix(KINDS[name], 8) for name in ("Q4_K", "Q4_K", "Q6_K", "F32")]
    layout = layout_of(*(Piece(0, 8 * i, 0, part) for i, part in enumerate(parts)))
    assert layout.nbytes == sum(part.blocks.nbytes for part in parts)
    assert len(layout.parts) == 3  # neighbours of one type are one
    assert torch.equal(layout.dequantize(), torch.cat([part.dequantize() for part in parts]))


def test_rows_of_no_piece_are_zero():
    """The rows that pad a vocabulary, in the middle and at the end."""
    first, second = (matrix(KINDS["Q6_K"], 4, seed=i) for i in range(2))
    layout = layout_of(Piece(0, 0, 0, first), Piece(0, 8, 0, second), rows=16)
    expected = torch.zeros(16, COLS)
    expected[0:4], expected[8:12] = first.dequantize(), second.dequantize()
    assert torch.equal(layout.dequantize(), expected)
    x = vectors_of(2, COLS, torch.float32)
    assert_near(BlocksLinear().linear(x, layout), x, expected)


@pytest.mark.parametrize("count", [1, 40])
def test_columns_of_no_piece_are_zero(count):
    """The blocks that cover the others hold further numbers of the file."""
    part = matrix(KINDS["Q4_K"], 8)[:, 32:352]
    piece = Piece(0, 0, 0, part)
    layout = allocated(Weight(None, 8, 384, torch.float32, [piece]), [Blocks])
    layout.put(piece)
    expected = torch.nn.functional.pad(part.dequantize(), (0, 64))
    assert torch.equal(layout.dequantize(), expected)
    assert torch.equal(BlocksLinear().rows(layout, torch.arange(8)), expected)
    x = vectors_of(count, 384, torch.float32)
    assert_near(BlocksLinear().linear(x, layout), x, expected)


@EVERY_TYPE
def test_blocks_of_zeros_are_zero(kind):
    blocks = torch.zeros(2, kind.row_bytes(COLS), dtype=torch.uint8)
    assert dequantize(blocks, kind.ggml_type).count_nonzero() == 0


@pytest.mark.parametrize("expert", [0, 2])
def test_not_numbers_are_found(expert):
    pieces = [Piece(e, 0, 0, matrix(KINDS["Q6_K"], 5, seed=e)) for e in range(3)]
    assert not layout_of(*pieces, experts=3).has_nan()
    blocks = pieces[expert].data.blocks
    blocks[-1, -1] = 0x7E  # the upper byte of the last block's scale
    assert layout_of(*pieces, experts=3).has_nan()


@EVERY_DTYPE
def test_rows(dtype):
    parts = [matrix(KINDS[name], 8, seed=i) for i, name in enumerate(("Q4_K", "Q6_K", "F16"))]
    cut = [part[:, 64:400] for part in parts]
    layout = layout_of(*(Piece(0, 8 * i, 0, part) for i, part in enumerate(cut)), dtype=dtype)
    ids = torch.tensor([[0, 23, 8], [7, 15, 0]])
    expected = torch.cat([part.dequantize()[:, 64:400] for part in parts]).to(dtype)
    rows = BlocksLinear().rows(layout, ids)
    assert rows.dtype is dtype
    assert torch.equal(rows, expected[ids])
    assert BlocksLinear().rows(layout, ids[:0]).shape == (0, 3, 336)
    for id_ in (-1, 24):
        with pytest.raises(IndexError, match="of 24"):
            BlocksLinear().rows(layout, torch.tensor([0, id_]))


@EVERY_DTYPE
@pytest.mark.parametrize("count", [1, 40])
def test_factors(dtype, count):
    """Each piece's factor multiplies its products and its rows, and is rounded once."""
    factors = (0.3, 1.0, 1.7)
    parts = [
        BlockTensor(m.blocks, m.block_type.ggml_type, factor=factor)
        for m, factor in zip(
            (matrix(KINDS[name], 8, seed=i) for i, name in enumerate(("Q4_K", "Q6_K", "NVFP4"))),
            factors,
            strict=True,
        )
    ]
    layout = layout_of(*(Piece(0, 8 * i, 0, part) for i, part in enumerate(parts)), dtype=dtype)
    expected = torch.cat([part.dequantize() for part in parts])
    assert torch.equal(expected[:8], matrix(KINDS["Q4_K"], 8, seed=0).dequantize() * factors[0])
    assert torch.equal(layout.dequantize(), expected)
    assert torch.equal(BlocksLinear().rows(layout, torch.arange(24)), expected.to(dtype))
    x = torch.randn(count, expected.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    y, exact = BlocksLinear().linear(x, layout), x.double() @ expected.double().t()
    limit = 1e-5 if dtype is torch.float32 else 1e-2
    assert y.dtype is dtype and (y - exact).norm() < limit * exact.norm()


def test_what_it_cannot_hold():
    part, numbers = matrix(KINDS["Q4_K"], 4), matrix(KINDS["F32"], 4)

    def unsupported_reason(*pieces: Piece, experts: int | None = None) -> str | None:
        return Blocks.unsupported_reason(Weight(experts, 8, COLS, torch.float32, pieces))

    assert unsupported_reason(Piece(0, 0, 0, part), Piece(0, 4, 0, numbers)) is None
    assert unsupported_reason(Piece(0, 0, 0, numbers)) == "none of it is quantized"
    assert unsupported_reason(Piece(0, 0, 0, numbers), experts=1) is None
    assert unsupported_reason(Piece(0, 0, 256, part[:, 256:])) == "its rows come in parts"
    odd, few = matrix(KINDS["F16"], 4, 48), matrix(KINDS["F16"], 4, 64)[:, :48]
    weight = Weight(1, 4, 48, torch.float32, [Piece(0, 0, 0, odd)])
    assert "not a multiple of 32" in Blocks.unsupported_reason(weight)
    assert layout_of(Piece(0, 0, 0, few)).dequantize().shape == (4, 48)
    lacking = Piece(0, 0, 0, part), Piece(1, 0, 0, part), Piece(1, 4, 0, part)
    assert unsupported_reason(*lacking, experts=2) == "an expert lacks rows that others have"


# Threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 4, 5, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("openmp", [True, False], ids=["openmp", "pool"])
def test_threads_do_not_change_bits(openmp, dtype, count, two_threads, monkeypatch):
    if openmp:
        assert threads._gomp_parallel() is not None  # torch's own, on the tests' systems
    else:
        monkeypatch.setattr(threads, "_gomp_parallel", lambda: None)
    weights, x = matrix(KINDS["Q5_K"], 203), vectors_of(count, COLS, dtype)
    together = linear(x, weights)
    torch.set_num_threads(1)
    assert torch.equal(linear(x, weights), together)


def test_results_in_another_dtype():
    x, weights = vectors_of(3, COLS, torch.bfloat16), matrix(KINDS["Q4_K"], 500)
    layout = layout_of(Piece(0, 0, 0, weights))
    exact = BlocksLinear(torch.float32).linear(x, layout)
    assert exact.dtype is torch.float32
    assert torch.equal(exact.bfloat16(), BlocksLinear().linear(x, layout))
    expected = x.double() @ weights.dequantize().double().T
    assert (exact - expected).norm() < 2**-10 * expected.norm()


def test_one_layer_in_two_threads_of_python(two_threads):
    """What a layer plans is kept; carrying it out shares nothing."""
    from concurrent.futures import ThreadPoolExecutor

    layer, layout = BlocksLinear(), layout_of(Piece(0, 0, 0, matrix(KINDS["Q4_K"], 500)))
    inputs = [vectors_of(2, COLS, torch.float32) + i for i in range(32)]
    alone = [layer.linear(x, layout) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: layer.linear(x, layout), inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# Other processors


@pytest.fixture(params=[(4, 32), (8, 16)], ids=["32 short registers", "16 registers"])
def plain_processor(request, monkeypatch) -> Iterator[None]:
    """Compiles for the least of x86-64, and for registers of other shapes."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86-64 processor: it runs code for the least of them")
    processor.host_machine()  # makes LLVM ready
    monkeypatch.setattr(processor, "HALF_INSTRUCTIONS", False)
    monkeypatch.setattr(processor, "BFLOAT_INSTRUCTIONS", False)
    monkeypatch.setattr(gemm, "_registers", lambda: request.param)
    triple = llvm.Target.from_default_triple()
    monkeypatch.setattr(
        processor, "host_machine", lambda: triple.create_target_machine(cpu="x86-64", opt=3)
    )
    caches = (gemv.kernel, gemm.kernel)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.slow
@EVERY_TYPE
def test_plain_processor(kind, plain_processor):
    weights = matrix(kind, 9)
    for count in (1, 7):
        x = vectors_of(count, COLS, torch.bfloat16)
        assert_near(linear(x, weights), x, weights.dequantize())


@pytest.mark.slow
@SOME_TYPES
@EVERY_DTYPE
@pytest.mark.parametrize("count", [31, 32, 70])
def test_where_torch_is_better(kind, dtype, count, monkeypatch):
    """As on a processor with instructions for products of matrices; chunks of a few rows."""
    monkeypatch.setattr(matmul, "torch_is_better", lambda dtype: True)
    monkeypatch.setattr(matmul, "_CHUNK_BYTES", 10 * COLS * 4)
    weights, x = matrix(kind, 37), vectors_of(count, COLS, dtype)
    assert_near(linear(x, weights), x, weights.dequantize())


# Experts


EXPERTS, HIDDEN, FFN, K = 6, 256, 512, 3


def mixture(dtype: torch.dtype, tokens: int, types: list[str]) -> tuple[Blocks, Blocks, dict]:
    """Packed experts, gate, up and down in turns of types, and the arguments of apply_experts."""
    kinds = [KINDS[types[i % len(types)]] for i in range(3 * EXPERTS)]
    shapes = [(FFN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN)]
    parts = [matrix(kind, *shapes[i % 3], seed=i) for i, kind in enumerate(kinds)]
    gates, ups, downs = parts[::3], parts[1::3], parts[2::3]
    w13 = [Piece(e, 0, 0, part) for e, part in enumerate(gates)]
    w13 += [Piece(e, FFN, 0, part) for e, part in enumerate(ups)]
    w2 = [Piece(e, 0, 0, part) for e, part in enumerate(downs)]
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1)
    topk_weights, topk_ids = scores.topk(K)
    layouts = [layout_of(*pieces, experts=EXPERTS, dtype=dtype) for pieces in (w13, w2)]
    return *layouts, {
        "x": (0.05 * vectors_of(tokens, HIDDEN, torch.float32)).to(dtype),
        "topk_weights": topk_weights,
        "topk_ids": topk_ids.to(torch.int32),
    }


def check_experts(w13: Layout, w2: Layout, arguments: dict, **options) -> None:
    x = arguments.pop("x")
    expected = apply_experts(
        x.float(),
        w13.dequantize(),
        w2.dequantize(),
        activation=silu_and_mul,
        **arguments,
        **options,
    )
    ours = BlocksExperts(w13, w2)(x, activation=silu_and_mul, **arguments, **options)
    assert ours.dtype is x.dtype
    assert ours.shape == expected.shape
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[ours.dtype]
    assert (ours - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 2, 4, 9, 40])
@pytest.mark.parametrize("types", [["Q4_K"], ["Q4_K", "Q6_K", "IQ4_XS", "F16", "Q8_0"]], ids=len)
def test_experts(dtype, tokens, types):
    check_experts(*mixture(dtype, tokens, types))


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("weight_on_input", [False, True])
def test_experts_with_biases(tokens, weight_on_input):
    w13, w2, arguments = mixture(torch.float32, tokens, ["Q4_K"])
    biases = {"w13_bias": torch.randn(EXPERTS, 2 * FFN), "w2_bias": torch.randn(EXPERTS, HIDDEN)}
    check_experts(w13, w2, arguments | biases, weight_on_input=weight_on_input)


@pytest.mark.parametrize("types", [["Q4_K"], ["Q4_K", "Q6_K"]], ids=len)
@pytest.mark.parametrize("tokens", [3, 9])
def test_experts_of_other_ranks(tokens, types):
    w13, w2, arguments = mixture(torch.float32, tokens, types)
    ids = arguments["topk_ids"]
    ids[0] = -1
    ids[1] = torch.tensor([-1, 2, EXPERTS])
    check_experts(w13, w2, dict(arguments))
    ids.fill_(-1)
    check_experts(w13, w2, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_of_few_tokens_are_kernels(dtype, monkeypatch):
    """A graph has nothing of Python for them, and looks up the experts each time."""
    w13, w2, arguments = mixture(dtype, 2, ["Q4_K"])
    experts = BlocksExperts(w13, w2)
    monkeypatch.setattr(experts, "_by_expert", None)
    graph, found = capture(lambda: experts(activation=silu_and_mul, **arguments))
    for shift in range(EXPERTS):
        arguments["topk_ids"].add_(shift).remainder_(EXPERTS)
        graph.replay()
        assert torch.equal(found, experts(activation=silu_and_mul, **arguments))
        expected = apply_experts(
            w13=w13.dequantize(), w2=w2.dequantize(), activation=silu_and_mul,
            **arguments | {"x": arguments["x"].float()},
        )  # fmt: skip
        assert (found - expected).norm() <= 2e-2 * expected.norm()
