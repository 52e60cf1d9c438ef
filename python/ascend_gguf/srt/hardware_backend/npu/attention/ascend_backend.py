"""Attention on Ascend: sliding windows, logit soft-caps, odd head sizes, bidirectional, latent.

The engine's own calls know a window only where sliding layers have a cache of their own
(``is_hybrid_swa``), no cap while it replays a graph, and the other direction only with some
settings; and of latent attention one size (:func:`ascend_gguf.servable.joined_latent`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.nn.functional import pad

from ascend_gguf.npu.products import ATTENTION, this_product
from ascend_gguf.srt.arg_groups.model_hook import has_odd_width
from ascend_gguf.srt.hardware_backend.npu.attention import latent
from ascend_gguf.srt.overrides import override
from ascend_gguf.torch_attention import attend_requests


def __init__(
    original: Callable, self: AscendAttnBackend, model_runner: Any, *args: Any, **kwargs: Any
) -> None:
    """AROUND ``AscendAttnBackend.__init__``: a draft model's backends are made in many places."""
    original(self, model_runner, *args, **kwargs)
    if model_runner.model_config.quantization == "gguf":
        override(self)


def forward_extend(
    original: Callable,
    self: AscendAttnBackend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    save_kv_cache: bool = True,
    **kwargs: Any,
) -> torch.Tensor:
    """Overrides ``forward_extend``: attention of new tokens, some of a request's or all.

    Args:
        q: ``[tokens, heads * size]``.
        k, v: ``[tokens, kv_heads, size]``.
        kwargs: ``sinks``, ``[heads]``; or what is told of latent vectors.
    """
    q = q.contiguous()  # of a layer without RoPE a part of a merged projection
    if _is_latent(self) and not kwargs and not latent.is_documented(self, layer, forward_batch, q):
        return latent.attend_prompts(self, layer, forward_batch, q, k, v)
    if not _is_ours(self, layer):
        return original(self, q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
    sinks = kwargs.pop("sinks", None)
    if _is_joined(self):
        q, k = _joined(layer, q, k, **kwargs)
    caches = _save(self, layer, forward_batch, k, v, save_kv_cache)
    q = _widened(q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), layer)
    new_lens = forward_batch.extend_seq_lens_cpu
    if _is_by_torch(layer):
        return _attend_by_torch(self, layer, forward_batch, q, *caches, new_lens, sinks)
    output = torch.empty_like(q)
    lengths = self.forward_metadata.seq_lens_cpu_int.tolist()
    start = 0
    for i, (new, length) in enumerate(zip(new_lens, lengths, strict=True)):
        if not new:
            continue
        # As the engine calls it, a request at a time: layout TND is for some sizes of heads only.
        output[start : start + new] = _attend_prompt(
            self,
            layer,
            q[None, start : start + new],
            *caches,
            self.forward_metadata.block_tables[i : i + 1],
            length,
            sinks,
        )
        start += new
    return _values(layer, output)


def forward_decode(
    original: Callable,
    self: AscendAttnBackend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    save_kv_cache: bool = True,
    **kwargs: Any,
) -> torch.Tensor:
    """Overrides ``forward_decode``: attention of one new token of each request.

    Args:
        q, k, v: as of :func:`forward_extend`.
    """
    q = q.contiguous()  # of a layer without RoPE a part of a merged projection
    if _is_latent(self) and not self.graph_mode and kwargs.get("topk_indices") is None:
        latent.pad_heads(self, layer, q)
        parts = {name: kwargs[name] for name in ("q_rope", "k_rope")}
        return self.forward_decode_graph(q, k, v, layer, forward_batch, save_kv_cache, **parts)
    if not _is_ours(self, layer):
        return original(self, q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
    sinks = kwargs.pop("sinks", None)
    if _is_joined(self):
        q, k = _joined(layer, q, k, **kwargs)
    caches = _save(self, layer, forward_batch, k, v, save_kv_cache)
    q = _widened(q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), layer)
    if _is_by_torch(layer):
        return _attend_by_torch(self, layer, forward_batch, q, *caches, [1] * len(q), sinks)
    metadata = self.forward_metadata
    # While a graph is captured it has to be the list that the engine replaces at each replay.
    lengths = metadata.seq_lens_cpu_list
    if metadata.seq_lens_cpu_int is not None:
        lengths = metadata.seq_lens_cpu_int.tolist()
    mask = _mask_of_step(self, layer) if layer.sliding_window_size > -1 else None
    query = q.flatten(1).unsqueeze(1)
    output = _attend_one(layer, query, *caches, metadata.block_tables, lengths, mask, sinks)
    return _values(layer, output)


def _is_ours(backend: AscendAttnBackend, layer: RadixAttention) -> bool:
    if backend.use_mla:
        return _is_joined(backend)
    if backend.is_hybrid_swa or layer.is_cross_attention:
        return False
    is_uneven = layer.qk_head_dim != layer.v_head_dim
    has_window = layer.sliding_window_size > -1
    return _is_by_torch(layer) or has_window or is_uneven or _is_both_ways(layer)


def _is_by_torch(layer: RadixAttention) -> bool:
    """No operator of the device has a logit soft-cap, a temperature, or any head size."""
    width = max(layer.qk_head_dim, layer.v_head_dim)
    is_odd = bool(layer.logit_cap) or layer.xai_temperature_len > 0 or has_odd_width(width)
    return is_odd or ATTENTION in this_product().lacks


def _is_both_ways(layer: RadixAttention) -> bool:
    return layer.attn_type == AttentionType.ENCODER_ONLY


def _is_joined(backend: AscendAttnBackend) -> bool:
    """Latent vectors and their keys are one in the cache."""
    return backend.use_mla and not backend.qk_rope_head_dim


def _is_latent(backend: AscendAttnBackend) -> bool:
    """Latent vectors and their keys have caches of their own."""
    return backend.use_mla and not _is_joined(backend)


def _joined(
    layer: RadixAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with the parts that are turned, which some models hand over apart."""
    if q_rope is not None and k_rope is not None:
        q, k = torch.cat((q.view(*q_rope.shape[:-1], -1), q_rope), -1), torch.cat((k, k_rope), -1)
    return q, k


def _widened(x: torch.Tensor, layer: RadixAttention) -> torch.Tensor:
    """``[..., size]`` as wide as keys and values are in the cache: what is added counts nothing."""
    width = max(layer.qk_head_dim, layer.v_head_dim)
    return pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


def _values(layer: RadixAttention, output: torch.Tensor) -> torch.Tensor:
    """``[tokens, heads, size]`` as ``[tokens, heads * v_head_dim]``: values may be padded."""
    return output[..., : layer.v_head_dim].flatten(1)


def _save(
    backend: AscendAttnBackend,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    k: torch.Tensor,
    v: torch.Tensor,
    save_kv_cache: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both caches, ``[pages, page_size, kv_heads, size]``, with the new tokens in them."""
    pool = backend.token_to_kv_pool
    if _is_joined(backend):
        cache = pool.get_key_buffer(layer.layer_id)
        if save_kv_cache:
            slots = forward_batch.out_cache_loc.view(-1, 1)
            width = layer.qk_head_dim
            torch_npu.npu_scatter_nd_update_(
                cache.view(-1, 1, width), slots, k.reshape(-1, 1, width)
            )
        return cache, cache
    if save_kv_cache:
        k, v = (_widened(x.view(len(x), layer.tp_k_head_num, -1), layer) for x in (k, v))
        pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
    caches = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
    # With ASCEND_USE_FIA they are rows of pages of one.
    k_cache, v_cache = (c.view(-1, backend.page_size, *c.shape[-2:]) for c in caches)
    return k_cache, v_cache


def _attend_by_torch(
    backend: AscendAttnBackend,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    new_lens: list[int],
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by several operators of torch: eager, as lengths are read on the host."""
    output = attend_requests(
        q,
        torch.empty_like(q),
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        backend.req_to_token,
        forward_batch.req_pool_indices.tolist(),
        forward_batch.seq_lens.tolist(),
        new_lens,
        layer.scaling,
        cap=layer.logit_cap,
        window=layer.sliding_window_size if layer.sliding_window_size > -1 else None,
        both_ways=_is_both_ways(layer),
        sinks=sinks,
        temperature=max(layer.xai_temperature_len, 0),
    )
    return _values(layer, output)


def _attend_prompt(
    backend: AscendAttnBackend,
    layer: RadixAttention,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    length: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The last tokens of one request, which look in a window or at all, also in both directions.

    ``[1, tokens, heads, size]`` to ``[tokens, heads, size]``.
    """
    band: dict[str, Any] = {}
    both_ways, window = _is_both_ways(layer), layer.sliding_window_size
    if window > -1 or not both_ways:
        if q.shape[1] == 1 and not both_ways:  # where the operator's modes have no effect
            mask = None
            if window > -1:
                lengths = torch.tensor([length], device=q.device)
                mask = _mask(lengths, layer, block_table, k_cache.shape[1])
            caches = k_cache, v_cache
            return _attend_one(layer, q.flatten(2), *caches, block_table, [length], mask, sinks)
        band = {"atten_mask": backend.fia_mask.unsqueeze(0), "sparse_mode": 3}
        if window > -1:  # a band that ends at the last query and the last key
            after = window if both_ways else 0
            band |= {"sparse_mode": 4, "pre_tokens": window, "next_tokens": after}
    output, sums = torch_npu.npu_fused_infer_attention_score_v2(
        query=q.contiguous(),
        key=k_cache.flatten(2),
        value=v_cache.flatten(2),
        num_query_heads=layer.tp_q_head_num,
        num_key_value_heads=layer.tp_k_head_num,
        input_layout="BSND",
        block_table=block_table,
        block_size=k_cache.shape[1],
        actual_seq_qlen=[q.shape[1]],
        actual_seq_kvlen=[length],
        softmax_scale=layer.scaling,
        return_softmax_lse=sinks is not None,
        **band,
    )
    return _beside_sinks(output[0], sums, sinks)


def _attend_one(
    layer: RadixAttention,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: list[int],
    mask: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One token of each request: ``[requests, 1, heads * size]`` to ``[requests, heads, size]``."""
    arguments = {
        "block_table": block_table,
        "block_size": k_cache.shape[1],
        "num_heads": layer.tp_q_head_num,
        "num_key_value_heads": layer.tp_k_head_num,
        "input_layout": "BSH",
        "scale": layer.scaling,
        "actual_seq_lengths_kv": lengths,
        "atten_mask": mask,
        "sparse_mode": 0,
        "softmax_lse_flag": sinks is not None,
    }
    tensors = q, k_cache.flatten(2), v_cache.flatten(2)
    # With its memory given, so that the call can be captured and updated.
    workspace = torch_npu._npu_fused_infer_attention_score_get_max_workspace(*tensors, **arguments)
    output = torch.empty_like(q)
    heads = layer.tp_q_head_num
    shape = (1,) if sinks is None else (len(q), heads, 1, 1)
    dtype = q.dtype if sinks is None else torch.float32
    sums = torch.empty(shape, dtype=dtype, device=q.device)
    torch_npu.npu_fused_infer_attention_score.out(
        *tensors, **arguments, workspace=workspace, out=[output, sums]
    )
    return _beside_sinks(output.view(len(q), heads, -1), sums, sinks)


def _beside_sinks(
    output: torch.Tensor, sums: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """``[tokens, heads, size]`` with one more score of each head, of a token that has no value.

    The operator takes such scores for some sizes of values alone.

    Args:
        sums: ``[requests, heads, tokens of one, 1]``, logarithms of what softmax divided by.
    """
    if sinks is None:
        return output
    sums = sums.transpose(1, 2).reshape(*output.shape[:2], 1)
    return (output * (sums - sinks.float().unsqueeze(-1)).sigmoid()).to(output.dtype)


def _mask_of_step(backend: AscendAttnBackend, layer: RadixAttention) -> torch.Tensor:
    """The mask of a decoding step, computed by the first layer of each window, then shared.

    Computed on the device, so that a graph computes it anew at each replay.
    """
    masks: dict[int, tuple[int, torch.Tensor]] = vars(backend).setdefault("ascend_gguf_masks", {})
    window = layer.sliding_window_size
    first = masks[window][0] if window in masks else layer.layer_id
    if first == layer.layer_id:
        metadata = backend.forward_metadata
        mask = _mask(metadata.seq_lens, layer, metadata.block_tables, backend.page_size)
        masks[window] = first, mask
    return masks[window][1]


def _mask(
    lengths: torch.Tensor, layer: RadixAttention, block_table: torch.Tensor, page_size: int
) -> torch.Tensor:
    """``[requests, 1, 1, places in the block table]``, true where the last token does not look."""
    places = torch.arange(block_table.shape[1] * page_size, device=lengths.device)
    return (places < (lengths - 1 - layer.sliding_window_size)[:, None])[:, None, None]
