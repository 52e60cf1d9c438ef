"""A cache of keys and values whose layers differ in their heads, and some have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.mem_cache.memory_pool import KVCache
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import is_npu

from ascend_gguf.architectures.dimensions import cached_heads, first
from ascend_gguf.npu.products import ATTENTION, this_product
from ascend_gguf.servable import joined_latent
from ascend_gguf.srt.overrides import override_methods


def has_layer_sizes(config: Any) -> bool:
    """Whether layers have keys or values of different sizes, or some have none.

    On an NPU also where keys and values have: its operators take them as of one size.
    """
    names = ("sizes_by_layer", "num_kv_shared_layers", *(("v_head_dim",) if is_npu() else ()))
    if first(config, *names) is None or getattr(config, "kv_lora_rank", None):
        return False
    sizes = {cached_heads(config, i) for i in range(config.num_hidden_layers)}
    return len(sizes) > 1 or is_npu() and any(key != value for _, key, value in sizes)


def latent_width(config: Any) -> int | None:
    """:func:`.joined_latent` of this process's NPU."""
    return joined_latent(config, ATTENTION not in this_product().lacks)


def join_latents(model_config: ModelConfig) -> None:
    """Let a cache on an NPU have latent vectors and their keys as one, if it attends to them so."""
    if is_npu() and (joined := latent_width(model_config.hf_config)) is not None:
        model_config.kv_lora_rank, model_config.qk_rope_head_dim = joined, 0


def _shapes(config: Any, layers: range) -> list[tuple[int, int, int]]:
    """Of each layer: its heads on this rank, and the sizes of a key and of a value."""
    ranks = get_parallel().attn_tp_size
    found = []
    for layer in layers:
        heads, *sizes = cached_heads(config, layer, is_npu())
        found.append((max(1, heads // ranks), *sizes) if heads else (0, 0, 0))
    return found


@contextmanager
def mean_sizes(model_config: ModelConfig, config: Any, layers: range) -> Iterator[None]:
    """While the engine makes a cache, all layers are alike: one head of the mean size.

    So it has as many tokens as there is memory for.
    """
    numbers = sum(heads * (key + value) for heads, key, value in _shapes(config, layers))
    mean = -(-numbers // (2 * len(layers)))
    kept = {name: vars(model_config)[name] for name in ("head_dim", "v_head_dim")}
    vars(model_config).update(
        head_dim=mean, v_head_dim=mean, get_num_kv_heads=lambda *args, **kwargs: 1
    )
    try:
        yield
    finally:
        del model_config.get_num_kv_heads
        vars(model_config).update(kept)


def give_layers_their_sizes(pool: KVCache, config: Any) -> None:
    """Replace the memory of layers, which the engine makes all alike.

    Keys and values of a layer are ``[..., heads, size]`` as before, with its own last two.
    """
    shapes = _shapes(config, range(pool.start_layer, pool.start_layer + pool.layer_num))
    for name, part in (("k_buffer", 1), ("v_buffer", 2)):
        first = getattr(pool, name)[0]
        outer, dtype, device = tuple(first.shape[:-2]), first.dtype, pool.device
        del first
        for attribute in (name, f"_hicache_{name}", f"{name}_tensor"):
            if hasattr(pool, attribute):
                setattr(pool, attribute, None)
        sizes = [(*outer, one[0], one[part]) for one in shapes]
        setattr(pool, name, [torch.zeros(size, dtype=dtype, device=device) for size in sizes])
    pool.head_num, pool.head_dim, pool.v_head_dim = max(shapes)
    if is_npu():
        override_methods(pool, set_kv_buffer=_set_kv_buffer)
    else:
        pool._kv_buffer_descs = pool._build_kv_buffer_descs()
        pool._init_data_ptrs_and_strides()


def _set_kv_buffer(original: Callable, self: Any, layer: Any, *args: Any, **kwargs: Any) -> None:
    """Overrides ``NPUMHATokenToKVPool.set_kv_buffer``, for which all layers have equal heads."""
    number = layer.layer_id - self.start_layer
    key, value = self.k_buffer[number], self.v_buffer[number]
    self.head_num, self.head_dim, self.v_head_dim = *key.shape[-2:], value.shape[-1]
    original(self, layer, *args, **kwargs)
