"""Latent attention on Ascend where the engine calls operators in ways that are not documented.

A prompt attends to keys and values of each head, expanded from latent vectors.  The engine has a
call for heads of 128 numbers in bfloat16, and one for heads whose keys and values are of one size.
Both take a cached prefix to be whole pages.  And a decode step outside of a graph joins the whole
cache of a layer, to give it to an operator of ATB.
"""

from __future__ import annotations

import torch
import torch_npu
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.nn.functional import pad

from ascend_gguf.srt.arg_groups.model_hook import HEAD_MULTIPLE, has_odd_width
from ascend_gguf.torch_attention import attend

#: Numbers of a key without its turned part, and of a value, in layout TND (CANN,
#: aclnnFusedInferAttentionScoreV4.md).
_HEAD = 128


def is_documented(
    backend: AscendAttnBackend, layer: RadixAttention, forward_batch: ForwardBatch, q: torch.Tensor
) -> bool:
    """Whether the engine computes prompts by one call for all of them, and rightly."""
    sizes = layer.qk_head_dim - backend.qk_rope_head_dim, layer.v_head_dim
    whole_pages = not any(n % backend.page_size for n in forward_batch.extend_prefix_lens_cpu)
    return sizes == (_HEAD, _HEAD) and q.dtype == torch.bfloat16 and whole_pages


def attend_prompts(
    backend: AscendAttnBackend,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """Prompts, or their next chunks, a request at a time.

    Args:
        q, k: ``[tokens, heads, size]``, of new tokens, which are in the cache already.
        v: ``[tokens, heads, value_size]``.

    Returns:
        ``[tokens, heads * value_size]``; zeros behind the last request.
    """
    q, k, v = (x.view(len(x), layer.tp_q_head_num, -1) for x in (q, k, v))
    output = torch.zeros_like(v)
    requests = forward_batch.req_pool_indices.tolist()
    befores, lengths = forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu
    start = 0
    for request, before, new in zip(requests, befores, lengths, strict=True):
        rows = slice(start, start + new)
        keys, values = k[rows], v[rows]
        if before:
            slots = backend.req_to_token[request, :before]
            earlier = _expanded(backend, layer, slots)
            keys, values = (torch.cat(x) for x in zip(earlier, (keys, values), strict=True))
        if new:
            output[rows] = _attend(backend, layer, q[rows], keys, values)
        start += new
    return output.flatten(1)


def _expanded(
    backend: AscendAttnBackend, layer: RadixAttention, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, ``[tokens, heads, size]``, of tokens in the cache."""
    latents, turned = (
        cache.flatten(0, -2)[slots]
        for cache in backend.token_to_kv_pool.get_kv_buffer(layer.layer_id)
    )
    expanded = layer.kv_b_proj(latents)[0].view(len(slots), layer.tp_k_head_num, -1)
    keys, values = expanded.split(
        [layer.qk_head_dim - backend.qk_rope_head_dim, layer.v_head_dim], -1
    )
    turned = turned[:, None].expand(-1, layer.tp_k_head_num, -1)
    return torch.cat((keys, turned), -1), values


def _attend(
    backend: AscendAttnBackend,
    layer: RadixAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    """The last tokens of one request: ``[tokens, heads, size]`` to the same of values.

    What is added to make keys and values of one size changes neither products nor sums.
    """
    width = -(-max(layer.qk_head_dim, layer.v_head_dim) // HEAD_MULTIPLE) * HEAD_MULTIPLE
    if has_odd_width(width):
        return attend(q, k, v, layer.scaling)
    q, k, v = (pad(x, (0, width - x.shape[-1])).unsqueeze(0).contiguous() for x in (q, k, v))
    causal = {"atten_mask": backend.fia_mask.unsqueeze(0), "sparse_mode": 3}
    output, _ = torch_npu.npu_fused_infer_attention_score_v2(
        query=q,
        key=k,
        value=v,
        num_query_heads=layer.tp_q_head_num,
        num_key_value_heads=layer.tp_k_head_num,
        input_layout="BSND",
        softmax_scale=layer.scaling,
        **(causal if q.shape[1] > 1 else {}),
    )
    return output[0, ..., : layer.v_head_dim]


def pad_heads(backend: AscendAttnBackend, layer: RadixAttention, q: torch.Tensor) -> None:
    """What the engine's call for graphs adds to the heads, which it makes for graphs alone."""
    more = (backend.q_head_num_padding or 0) - layer.tp_q_head_num
    if more > 0:
        metadata = backend.forward_metadata
        metadata.nope_padding = q.new_zeros(len(q), 1, more, backend.kv_lora_rank)
        metadata.rope_padding = q.new_zeros(len(q), 1, more, backend.qk_rope_head_dim)
