"""Linear layers, embeddings and experts on the host, whose weights are still GGUF blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ascend_gguf.cpu import row_ops
from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.cpu.experts import gelu_and_mul, silu_and_mul
from ascend_gguf.cpu.graph import host_call
from ascend_gguf.cpu.matmul import GEMV_COLUMNS, Matmul, Product
from ascend_gguf.weights.linear_kernel import EmbeddingKernel

# Up to how many vectors a layer keeps its matmuls; for more, preparing them costs little.
_MOST_KEPT = 64

# One call of a kernel each.
_ROW_OPS: dict[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]] = {
    silu_and_mul: row_ops.silu_and_mul,
    gelu_and_mul: row_ops.gelu_tanh_and_mul,
}


class BlocksLinear(EmbeddingKernel[Blocks]):
    """Decodes weights while it multiplies with them: see :mod:`~ascend_gguf.cpu.matmul`.

    Args:
        out_dtype: of results; by default that of vectors.
    """

    layouts = (Blocks,)

    def __init__(self, out_dtype: torch.dtype | None = None) -> None:
        self._out_dtype = out_dtype
        self._prepared: dict[tuple, list[tuple[slice, Matmul]]] = {}

    def linear(
        self, x: torch.Tensor, weight: Blocks, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows, cols = weight.shape
        vectors = x.reshape(-1, cols)
        count = vectors.shape[0]
        out_dtype = self._out_dtype or x.dtype
        if weight.factors is not None:  # rounded once, with the factor
            out_dtype = torch.float32
        out = vectors.new_empty(count, rows, dtype=out_dtype)
        if count:
            key = weight, count, x.dtype
            matmuls = self._prepared.get(key)
            if matmuls is None:
                matmuls = _matmuls(weight, [(0, 0, 0, count)], x.dtype, out_dtype)
                if count <= _MOST_KEPT:
                    self._prepared[key] = matmuls
            _multiply(matmuls, vectors, out)
        if weight.factors is not None:
            out = (out * weight.factors).to(self._out_dtype or x.dtype)
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], rows)

    def rows(self, weight: Blocks, ids: torch.Tensor) -> torch.Tensor:
        return host_call(weight.rows, ids.reshape(-1)).view(*ids.shape, weight.shape[1])


class BlocksExperts:
    """A mixture of experts.

    A few tokens meet their experts one by one, by kernels that look up which: a graph can do it
    again.  For more, all of a projection's matrices of one type that meet as many tokens are one
    call of a kernel.

    Args:
        w13: ``[experts, rows, hidden]``: gate and up projection, gate first.
        w2: ``[experts, hidden, ffn]``: down projection.
    """

    layouts = (Blocks,)

    def __init__(self, w13: Blocks, w2: Blocks) -> None:
        self.w13 = w13
        self.w2 = w2
        self._holds_all = all(map(_holds_all, (w13, w2)))
        # Number of tokens, k, dtype, and whether each pair has an input of its own -> the matmuls.
        self._prepared: dict[tuple, tuple[list[tuple[slice, Matmul]], ...]] = {}

    def __call__(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
        *,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
        weight_on_input: bool = False,
    ) -> torch.Tensor:
        """As :func:`~ascend_gguf.cpu.experts.apply_experts`."""
        options = (activation, w13_bias, w2_bias, weight_on_input)
        if self._holds_all and 0 < len(x) <= GEMV_COLUMNS:
            return self._one_by_one(x, topk_weights, topk_ids, *options)
        # Which experts a token has says which products there are.
        return host_call(self._by_expert, x, topk_weights, topk_ids, *options)

    def _one_by_one(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
        w13_bias: torch.Tensor | None,
        w2_bias: torch.Tensor | None,
        weight_on_input: bool,
    ) -> torch.Tensor:
        w13, w2 = self.w13, self.w2
        tokens, k = topk_ids.shape
        chosen = topk_ids.reshape(-1).to(torch.int32)
        weights = topk_weights.float().contiguous()
        rows, ids = x, chosen.clamp(0, w13.shape[0] - 1) if w13_bias is not None else chosen
        if weight_on_input:
            rows = (x[:, None].float() * weights[..., None]).to(x.dtype).flatten(0, 1)
            weights = torch.ones_like(weights)
        key = tokens, k, x.dtype, weight_on_input
        if key not in self._prepared:
            pairs = range(tokens * k)
            first = [(0, p if weight_on_input else p // k, p, 1) for p in pairs]
            self._prepared[key] = (
                _matmuls(w13, first, x.dtype, x.dtype),
                _matmuls(w2, [(0, p, p, 1) for p in pairs], x.dtype, torch.float32),
            )
        up, down = self._prepared[key]
        gate_up = x.new_empty(tokens * k, w13.shape[1])
        _multiply(up, rows, gate_up, chosen)
        hidden = _ROW_OPS.get(activation, activation)(_biased(gate_up, w13_bias, ids))
        out = torch.empty(tokens * k, w2.shape[1], dtype=torch.float32)
        _multiply(down, hidden, out, chosen)
        out = _biased(out, w2_bias, ids)
        return row_ops.sum_chosen(out, weights, chosen, w13.shape[0], x.dtype)

    def _by_expert(
        self,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
        w13_bias: torch.Tensor | None,
        w2_bias: torch.Tensor | None,
        weight_on_input: bool,
    ) -> torch.Tensor:
        w13, w2 = self.w13, self.w2
        tokens, k = topk_ids.shape
        experts = topk_ids.reshape(-1).numpy()
        # Pairs of a token and an expert, by expert, without those of experts held elsewhere.
        order = np.argsort(experts, kind="stable")
        first, stop = np.searchsorted(experts[order], [0, w13.shape[0]])
        order = order[first:stop]
        held, starts, counts = np.unique(experts[order], return_index=True, return_counts=True)
        products = [
            (expert, start, start, count)
            for expert, start, count in zip(
                *(a.tolist() for a in (held, starts, counts)), strict=True
            )
        ]
        pairs = torch.from_numpy(order)
        token, ids = pairs // k, topk_ids.reshape(-1)[pairs]
        weights = topk_weights.reshape(-1, 1)[pairs].float()

        rows = x[token]
        if weight_on_input:
            rows = (rows.float() * weights).to(x.dtype)
        dtype = x.dtype if w13.factors is None else torch.float32
        gate_up = rows.new_empty(len(pairs), w13.shape[1], dtype=dtype)
        _multiply(_matmuls(w13, products, x.dtype, dtype), rows, gate_up)
        gate_up = _multiplied(gate_up, w13.factors, ids).to(x.dtype)
        hidden = activation(_biased(gate_up, w13_bias, ids))
        down = torch.empty(len(pairs), w2.shape[1], dtype=torch.float32)
        _multiply(_matmuls(w2, products, x.dtype, torch.float32), hidden, down)
        down = _biased(_multiplied(down, w2.factors, ids), w2_bias, ids)
        out = torch.zeros(tokens, w2.shape[1], dtype=torch.float32)
        out.index_add_(0, token, down if weight_on_input else down * weights)
        return out.to(x.dtype)


def experts_product(weight: Blocks, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """``x [n, K]``, sorted by expert, to ``[n, N]``; ``counts``: int64, rows of each expert."""
    starts = (counts.cumsum(0) - counts).tolist()
    rows = zip(starts, counts.tolist(), strict=True)
    products = [(expert, start, start, n) for expert, (start, n) in enumerate(rows) if n]
    out = x.new_empty(len(x), weight.shape[1])
    _multiply(_matmuls(weight, products, x.dtype, x.dtype), x, out)
    return out


def _holds_all(weight: Blocks) -> bool:
    """Whether the matrix of each expert is at its number, in every part."""
    everyone = tuple(range(weight.shape[0]))
    return weight.factors is None and all(part.experts == everyone for part in weight.parts)


def _multiplied(y: torch.Tensor, factors: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    return y if factors is None else y * factors[ids]


def _biased(y: torch.Tensor, bias: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
    return y if bias is None else (y.float() + bias[ids].float()).to(y.dtype)


def _matmuls(
    weight: Blocks,
    products: Sequence[tuple[int, int, int, int]],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> list[tuple[slice, Matmul]]:
    """All parts of a weight multiplied with vectors ``[m, cols]``; of each its rows of results.

    Args:
        products: for each an expert (0 for a single matrix), the first of its vectors and of its
            results, and how many.
        dtype, out_dtype: of vectors and results.
    """
    rows, cols = weight.shape[-2:]
    found = []
    for part in weight.parts:
        mine = [Product(part.place[e], *rest) for e, *rest in products if e in part.place]
        matrices = weight.tensors[part.name]
        is_whole = part.cols == cols == part.kind.row_cols(matrices.shape[-1])
        columns = None if is_whole else (part.skip, part.cols)
        matmul = Matmul(part.kind, matrices, mine, dtype, out_dtype, rows, columns)
        found.append((slice(part.first, part.first + part.rows), matmul))
    return found


def _multiply(
    matmuls: list[tuple[slice, Matmul]],
    x: torch.Tensor,
    out: torch.Tensor,
    chosen: torch.Tensor | None = None,
) -> None:
    """``x [m, cols]`` to ``out [m, rows]``; ``chosen`` as of :meth:`Matmul.run`."""
    x = x.contiguous()
    for rows, matmul in matmuls:
        matmul.run(x, out[:, rows], chosen=chosen)
