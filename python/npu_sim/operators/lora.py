"""LoRA of sequences, each with an adapter of its own: npu::sgemmv_shrink and npu::sgemmv_expand.

sgl-kernel-npu brings them (csrc/lora, whose checks these are); the calls are SGLang 0.5.23's
lora/backend/ascend_backend.py.

    shrink   y[t, : n r] = scale * x[t] @ A[l, : n r]^T              of n projections that share x
    expand   y[t, o_s : o_s+1] += x[t, s r : (s + 1) r] @ B[l, o_s : o_s+1, : r]^T

t is a token, l the adapter of its sequence, r that adapter's rank; a rank of zero leaves y alone.
x and y of shrink (T, K) and (T, n R), A (L, n R, K); x and y of expand (T, n R) and (T, N), B
(L, N, R); R the largest rank.
"""

from __future__ import annotations

from .rules import BF16, F16, F32, I32, Rules
from .view import viewed

SHRINK = "sgl-kernel-npu csrc/lora/op_host/sgemmv_shrink.cpp"
EXPAND = "sgl-kernel-npu csrc/lora/op_host/sgemmv_expand.cpp"


def _segments(rule, tokens, weight, indices, seg_lens, ranks):
    """(rows, adapter, rank) of each sequence that has an adapter."""
    for argument, v in (("lora_indices", indices), ("seq_len", seg_lens), ("lora_ranks", ranks)):
        rule.dtype(argument, v.t, I32)
        rule.ndim(argument, v.t, 1)
    rule.values("lora_indices", indices.t, 0, weight.t.shape[0] - 1)
    start = 0
    for adapter, length in zip(indices.t.tolist(), seg_lens.t.tolist(), strict=True):
        rank = ranks.t[adapter].item()
        if rank and start < tokens:
            rule.one_of("lora_ranks", rank, 8, 16, 32, 64)
            yield slice(start, min(start + length, tokens)), adapter, rank
        start += length


@viewed
def sgemmv_shrink(x, weight, indices, seg_lens, ranks, scales, y, n_slices=1) -> None:
    rule = Rules("npu::sgemmv_shrink", SHRINK)
    rule.dtype("x", x.t, F16, BF16)
    rule.same_dtype("weight", weight.t, "x", x.t)
    rule.dtype("y", y.t, F32)
    rule.dtype("lora_scales", scales.t, F16)
    rule.ndim("x", x.t, 2)
    rule.ndim("weight", weight.t, 3)
    tokens, width = x.t.shape
    rule.shape("y", y.t, (tokens, weight.t.shape[1]))
    rule.equal("weight", "the last dimension", weight.t.shape[2], width)
    rule.that(width > y.t.shape[1], "x", f"is wider than y (found {width} and {y.t.shape[1]})")
    for rows, adapter, rank in _segments(rule, tokens, weight, indices, seg_lens, ranks):
        a = weight.t[adapter, : n_slices * rank].float()
        y.t[rows, : n_slices * rank] = x.t[rows].float() @ a.T * scales.t[adapter].float()


@viewed
def sgemmv_expand(x, weight, indices, seg_lens, ranks, offsets, y) -> None:
    rule = Rules("npu::sgemmv_expand", EXPAND)
    rule.dtype("y", y.t, F16, BF16)
    rule.same_dtype("weight", weight.t, "y", y.t)
    rule.dtype("x", x.t, F32)
    rule.dtype("slice_offsets", offsets.t, I32)
    rule.ndim("x", x.t, 2)
    rule.ndim("weight", weight.t, 3)
    rule.ndim("y", y.t, 2)
    tokens = x.t.shape[0]
    ends = offsets.t.tolist()
    rule.values("slice_offsets", offsets.t, 0, y.t.shape[1])
    for rows, adapter, rank in _segments(rule, tokens, weight, indices, seg_lens, ranks):
        for s, (first, last) in enumerate(zip(ends, ends[1:], strict=False)):
            b = weight.t[adapter, first:last, :rank].float()
            product = x.t[rows, s * rank : (s + 1) * rank] @ b.T
            y.t[rows, first:last] = (y.t[rows, first:last].float() + product).to(y.t.dtype)


TORCH_OPS = {"npu::sgemmv_shrink": sgemmv_shrink, "npu::sgemmv_expand": sgemmv_expand}

# Operators that torch_npu does not have.
SCHEMAS = {
    "npu": [
        "sgemmv_shrink(Tensor x, Tensor weight, Tensor lora_indices, Tensor seq_len, "
        "Tensor lora_ranks, Tensor lora_scales, Tensor(a!) y, int n_slices=1) -> ()",
        "sgemmv_expand(Tensor x, Tensor weight, Tensor lora_indices, Tensor seq_len, "
        "Tensor lora_ranks, Tensor slice_offsets, Tensor(a!) y) -> ()",
    ]
}
