"""A cache of keys and values whose layers differ in their heads, and some have none: Gemma 4."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import KVCache
from sglang.srt.runtime_context import get_parallel


def has_layer_sizes(config: Any) -> bool:
    """Whether layers with a window have heads of another size or number, or share keys."""
    sizes = (config.head_dim, config.num_key_value_heads) if hasattr(config, "swa_head_dim") else ()
    swa = getattr(config, "swa_head_dim", None), getattr(config, "swa_num_key_value_heads", None)
    return None not in swa and (sizes != swa or bool(getattr(config, "num_kv_shared_layers", 0)))


def give_layers_their_sizes(pool: KVCache, config: Any) -> None:
    """Replace the memory of layers, which the engine makes all alike.

    Keys and values of a layer are ``[..., heads, head_size]`` as before, with its own last two.
    """
    own = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
    ranks = get_parallel().attn_tp_size
    for name in ("k_buffer", "v_buffer"):
        like = getattr(pool, name)
        shapes, dtype, device = [tuple(layer.shape) for layer in like], like[0].dtype, pool.device
        for attribute in (name, f"_hicache_{name}", f"{name}_tensor"):
            if hasattr(pool, attribute):
                setattr(pool, attribute, None)
        del like
        buffers = []
        for i, shape in enumerate(shapes):
            layer = pool.start_layer + i
            if layer >= own:  # attends to those of another
                shape = (1, *shape[1:-2], 1, 1)
            elif config.layer_types[layer] == "sliding_attention":
                heads = max(1, config.swa_num_key_value_heads // ranks)
                shape = (*shape[:-2], heads, config.swa_head_dim)
            buffers.append(torch.zeros(shape, dtype=dtype, device=device))
        setattr(pool, name, buffers)
    if "_kv_buffer_descs" in vars(pool):  # not on an NPU
        pool._kv_buffer_descs = pool._build_kv_buffer_descs()
        pool._init_data_ptrs_and_strides()
