"""npu_top_k_top_p and the grammar mask.

npu_top_k_top_p: logits outside the k largest, or outside the smallest set of probability p,
become -inf.

Step by step as the documentation has it: sort upwards, cut below the k-th largest value (ties of it
stay), softmax, cumulate from the smallest, cut where the sum is at most 1 - p, always keep the
last, and put everything back in its place.
"""

from __future__ import annotations

import torch

from .registry import aclnn
from .rules import BF16, F16, F32, I32, Rules
from .view import viewed

DOC = "torch_npu 2.13.0 documentation of npu_top_k_top_p"


@aclnn("aclnnApplyTopKTopP", "tttt")
def top_k_top_p(logits, p, k, out):
    rule = Rules("npu_top_k_top_p", DOC)
    rule.dtype("logits", logits.t, F16, BF16, F32)
    rule.ndim("logits", logits.t, 2)
    rule.that(p is not None or k is not None, "p", "p and k are not both None")
    rows, columns = logits.t.shape
    if p:
        rule.same_dtype("p", p.t, "logits", logits.t)
        rule.shape("p", p.t, (rows,))
        rule.values("p", p.t, 0, 1)
    if k:
        rule.dtype("k", k.t, I32)
        rule.shape("k", k.t, (rows,))
        rule.values("k", k.t, 1, min(1024, columns))
    values, order = logits.t.float().sort(dim=-1, stable=True)
    if k:
        smallest = values.gather(1, (columns - k.t.long()).unsqueeze(1))
        values = values.masked_fill(values < smallest, -torch.inf)
    if p:
        cut = values.softmax(-1).cumsum(-1) <= 1 - p.t.float().unsqueeze(1)
        cut[:, -1] = False
        values = values.masked_fill(cut, -torch.inf)
    out.t.copy_(torch.empty_like(values).scatter_(1, order, values))


@viewed
def apply_token_bitmask(logits, bitmask) -> None:
    """In place: logits[b, v] = -inf where bit v % 32 of bitmask[b, v // 32] is zero."""
    # Its kernel is sgl-kernel-npu's, which states no rules; these are what SGLang 0.5.23's grammar
    # backends pass (constrained/xgrammar_backend.py, llguidance_backend.py).
    rule = Rules("npu::apply_token_bitmask", "SGLang 0.5.23 constrained/xgrammar_backend.py")
    rule.dtype("logits", logits.t, F16, BF16, F32)
    rule.ndim("logits", logits.t, 2)
    rule.dtype("bitmask", bitmask.t, I32)
    rows, columns = logits.t.shape
    rule.shape("bitmask", bitmask.t, (rows, -(-columns // 32)))
    bits = (bitmask.t.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
    logits.t.masked_fill_(bits.flatten(1)[:, :columns] == 0, -torch.inf)


TORCH_OPS = {"npu::apply_token_bitmask": apply_token_bitmask}

# Operators that torch_npu does not have: sgl-kernel-npu brings them.
SCHEMAS = {"npu": ["apply_token_bitmask(Tensor(a!) logits, Tensor bitmask) -> ()"]}
