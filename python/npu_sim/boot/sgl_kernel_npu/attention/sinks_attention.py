"""Attention over pages with a sink: a score of each head that takes part in the softmax, without a
value.

Windows are as the package counts them: a token sees ``window`` tokens, itself included; -1 is none.
Lengths are of whole sequences, of which the queries are the last tokens.  Caches are ``(pages,
page_size, kv_heads, size)``.
"""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in
from npu_sim.operators.attend import attend, gather_pages

missing_in(__name__)


@device_kernel(
    "attention_sinks",
    "(Tensor query, Tensor k_cache, Tensor v_cache, Tensor sinks, Tensor? new_lens, Tensor table, "
    "Tensor lengths, float scale, int window, int heads, int kv_heads) -> Tensor",
)
def _kernel(
    query, k_cache, v_cache, sinks, new_lens, table, lengths, scale, window, heads, kv_heads
):
    q = query.reshape(query.shape[0], heads, -1)
    output = torch.zeros(q.shape[0], heads, v_cache.shape[-1], dtype=q.dtype)
    counts = [1] * len(lengths) if new_lens is None else new_lens.tolist()
    start = 0
    for new, length, pages in zip(counts, lengths.tolist(), table, strict=True):
        if length:  # a graph is captured with empty sequences
            k, v = (gather_pages(c, pages, length) for c in (k_cache, v_cache))
            distance = torch.arange(length - new, length)[:, None] - torch.arange(length)
            hidden = distance < 0 if window == -1 else (distance < 0) | (distance >= window)
            rows = slice(start, start + new)
            output[rows] = attend(q[rows], k, v, scale, hidden, sinks)[0].to(q.dtype)
        start += new
    return output.flatten(1)


def attention_sinks_triton(query, k_cache, v_cache, sinks, *others):
    """One token of each sequence, ``(sequences, heads * size)``.

    ``others``: block_tables, context_lens, scale, sliding_window_size, q_head_num, k_head_num.
    """
    return _kernel(query, k_cache, v_cache, sinks, None, *others)


def attention_sinks_prefill_triton(query, k_cache, v_cache, sinks, seq_lens, *others):
    """``seq_lens`` tokens of each sequence, ``(tokens, heads * size)``; others as above."""
    return _kernel(query, k_cache, v_cache, sinks, seq_lens, *others)
