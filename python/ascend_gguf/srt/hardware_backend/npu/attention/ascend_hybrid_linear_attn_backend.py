"""States of requests on Ascend: of Mamba-2, Kimi Delta Attention and short convolutions.

The engine's backend for Mamba-2 on Ascend has no operators, that for Kimi Delta Attention some that
are not documented, and it has none for convolutions.  These have the engine's own bookkeeping, and
compute by torch's operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.attention.ascend_hybrid_linear_attn_backend import (
    AscendHybridLinearAttnBackend,
    AscendMambaAttnBackendBase,
)
from sglang.srt.layers.attention.hybrid_linear_attn_backend import (
    HybridLinearAttnBackend,
    Mamba2AttnBackend,
    ShortConvHybridAttnBackend,
)
from sglang.srt.layers.attention.linear.short_conv_backend import ShortConvAttnBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from ascend_gguf import torch_delta_rule as delta_rule
from ascend_gguf.npu.causal_conv import Windows, convolve_prompts, convolve_step, silu
from ascend_gguf.torch_delta_rule import CHUNK_BY_CHANNEL, gates
from ascend_gguf.torch_state_space import CHUNK, Chunks, Heads, scan, step


def with_states(attention: Any, model_runner: Any, config: Any) -> HybridLinearAttnBackend:
    """A backend for all layers of a model: ``attention`` for some, states for the others."""
    layers = config.full_attention_layer_ids
    if config.model_type in ("lfm2", "lfm2_moe"):
        return ShortConvHybridAttnBackend(attention, GGUFShortConvBackend(model_runner), layers)
    kind = GGUFKDABackend if config.model_type == "kimi_linear" else GGUFMamba2Backend
    return AscendHybridLinearAttnBackend(attention, kind(model_runner), layers)


class _Convolutions(AscendMambaAttnBackendBase):
    """What all have: the last inputs of a convolution, and how they are kept for the prefix cache.

    Attributes:
        windows: of the prompts of this step; None where it is a step of single tokens.
    """

    windows: Windows | None = None

    def _know_states(self) -> None:
        """The engine's indices are made for states of ``[channels, width - 1]``."""
        shape = self.req_to_token_pool.mamba_pool.mamba_cache.conv[0].shape
        self.conv_states_shape = torch.Size((*shape[:-2], shape[-1], shape[-2]))

    def _plan(self, forward_batch: ForwardBatch) -> list[int] | None:
        """Of a step that is not replayed: how many tokens the prompts have, if it has any."""
        self.windows = None
        if not forward_batch.forward_mode.is_extend():
            return None
        lengths = list(forward_batch.extend_seq_lens_cpu)
        self.windows = Windows(lengths, self.conv_states_shape[-1] + 1, self.device)
        self.has_state = forward_batch.extend_prefix_lens > 0
        if self.forward_metadata.has_mamba_track_mask:
            rows = forward_batch.mamba_track_mask.nonzero(as_tuple=True)[0]
            self.tracked = forward_batch.mamba_track_indices[rows]
        return lengths

    def init_forward_metadata_out_graph(self, *args: Any, **kwargs: Any) -> None:
        super().init_forward_metadata_out_graph(*args, **kwargs)
        self.windows = None

    def convolve(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        states: torch.Tensor,
    ) -> torch.Tensor:
        """``[tokens, channels]``, float32, of the same; ``states`` are those of the layer."""
        slots = self.forward_metadata.mamba_cache_indices.long()
        if self.windows is None:
            return convolve_step(x, weight, bias, states, slots)
        if self.forward_metadata.has_mamba_track_mask:
            states[self.tracked] = x[self.forward_metadata.track_conv_indices].to(states.dtype)
        return convolve_prompts(x, weight, bias, states, slots, self.has_state, self.windows)


class _Recurrent(_Convolutions):
    """What those have whose states a prompt changes a chunk at a time.

    Attributes:
        chunks: of the prompts of this step.
        wanted: numbers of chunks whose states before them are kept, and ``kept_at``: the slots.
    """

    def _plan_chunks(self, lengths: list[int], size: int) -> None:
        """The engine keeps states of whole chunks, as long as it thinks they are."""
        size = math.gcd(size, self.mamba_chunk_size)
        self.chunks, self.wanted = Chunks(lengths, size, self.device), []

    def _change(self, states: torch.Tensor, scan: Callable[..., tuple]) -> torch.Tensor:
        """Prompts change ``states``, of the layer.

        Args:
            scan: of the states before, float32, chunks and ``wanted``: outputs, the states after,
                and those that are wanted.
        """
        metadata, slots = self.forward_metadata, self.forward_metadata.mamba_cache_indices.long()
        before = torch.where(self.has_state[:, None, None, None], states[slots], 0).float()
        found, after, kept = scan(before, self.chunks, self.wanted)
        states[slots] = after.to(states.dtype)
        if metadata.has_mamba_track_mask:
            if self.wanted:
                of_wanted = torch.stack([kept[number] for number in self.wanted])
                states[self.kept_at] = of_wanted.to(states.dtype)
            states[metadata.track_ssm_final_dst] = states[metadata.track_ssm_final_src]
        return found


class GGUFMamba2Backend(_Recurrent, Mamba2AttnBackend):
    """The engine's backend for Mamba-2, with operators."""

    def __init__(self, model_runner: Any) -> None:
        # Not of Mamba2AttnBackend, which takes channels for the width of the convolution.
        super(Mamba2AttnBackend, self).__init__(model_runner)
        self.state_indices_list_gdn: list[torch.Tensor] = []
        self._know_states()

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        lengths = self._plan(forward_batch)
        if lengths is None:
            return
        self._plan_chunks(lengths, CHUNK)
        metadata = self.forward_metadata
        if metadata.has_mamba_track_mask:
            places = metadata.track_ssm_h_src * self.mamba_chunk_size, metadata.track_ssm_end_locs
            self.wanted = [self.chunks.starts.index(i) for i in torch.cat(places).tolist()]
            self.kept_at = torch.cat([metadata.track_ssm_h_dst, metadata.track_ssm_recompute_dst])

    def forward(
        self,
        mixer: Any,
        hidden_states: torch.Tensor,
        output: torch.Tensor | None,
        layer_id: int,
        forward_batch: ForwardBatch,
        mup_vector: torch.Tensor | None = None,
        use_triton_causal_conv: bool = False,
    ) -> torch.Tensor:
        """A layer, ``[tokens, hidden]`` to the same; ``output`` gets it too."""
        projected, _ = mixer.in_proj(hidden_states)
        if mup_vector is not None:
            projected = projected * mup_vector
        sizes = mixer.intermediate_size, mixer.conv_dim, mixer.num_heads
        gate, mixed, dt = projected.split([size // mixer.tp_size for size in sizes], -1)
        cache = self.req_to_token_pool.mamba2_layer_cache(layer_id)
        weight = mixer.conv1d.weight.flatten(1)
        mixed = self.convolve(mixed, weight, mixer.conv1d.bias, cache.conv[0])
        # In float32 up to the norm, which would be rounded three times else.
        found = self._recur(mixer, silu(mixed, mixer.activation), dt, cache.temporal)
        if self.windows is None:
            slots = self.forward_metadata.mamba_cache_indices
            self._track_mamba_state_decode(forward_batch, cache.conv[0], cache.temporal, slots)
        normed = mixer.norm(found.flatten(1), gate).to(hidden_states.dtype)
        result, _ = mixer.out_proj(normed)
        if output is not None:
            output.copy_(result)
        return result

    def _recur(
        self, mixer: Any, mixed: torch.Tensor, dt: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """``[tokens, heads, size]``, float32."""
        shared = mixer.groups_ssm_state_size // mixer.tp_size
        x, B, C = mixed.split([mixed.shape[-1] - 2 * shared, shared, shared], -1)
        x = x.unflatten(-1, (-1, mixer.head_dim))
        B, C = (part.unflatten(-1, (-1, mixer.ssm_state_size)) for part in (B, C))
        heads = Heads(mixer.A, mixer.D, mixer.dt_bias)
        if self.windows is None:
            slots = self.forward_metadata.mamba_cache_indices.long()
            return step(x, dt, B, C, heads, states, slots)
        return self._change(states, partial(scan, x, dt, B, C, heads))


class GGUFKDABackend(_Recurrent):
    """Kimi Delta Attention, without the engine's operators for it."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._know_states()

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        lengths = self._plan(forward_batch)
        if lengths is None:
            return
        self._plan_chunks(lengths, CHUNK_BY_CHANNEL)
        metadata = self.forward_metadata
        if metadata.has_mamba_track_mask:
            kept = Chunks(lengths, self.mamba_chunk_size, "cpu").starts
            numbers = metadata.track_ssm_h_src.tolist()
            self.wanted = [self.chunks.starts.index(kept[number]) for number in numbers]
            self.kept_at = metadata.track_ssm_h_dst

    def forward_extend(
        self,
        layer: Any,
        forward_batch: ForwardBatch,
        mixed_qkv: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """``[1, tokens, heads, value_size]``, float32.

        Args:
            mixed_qkv: ``[tokens, channels]``.
            a: as many numbers as keys have, in one dimension or several; ``b``: as many as heads.
        """
        cache = self.req_to_token_pool.mamba2_layer_cache(layer.layer_id)
        mixed = self.convolve(mixed_qkv, layer.conv_weights, layer.bias, cache.conv[0])
        parts = silu(mixed, "silu").split([layer.q_dim, layer.k_dim, layer.v_dim], -1)
        q, k, v = (part.unflatten(-1, (layer.num_v_heads, -1)) for part in parts)
        steps = a.reshape(k.shape), b.reshape(k.shape[:2]), layer.dt_bias.view(k.shape[1:])
        (g,), (beta,) = gates(layer.A_log.flatten(), *steps)
        tokens = delta_rule.Tokens(q, k, v, g, beta)
        states = cache.temporal
        if self.windows is None:
            slots = self.forward_metadata.mamba_cache_indices
            found = delta_rule.step(tokens, states, slots.long())
            self._track_mamba_state_decode(forward_batch, cache.conv[0], states, slots)
        else:
            found = self._change(states, partial(delta_rule.scan, tokens))
        return found.unsqueeze(0)

    forward_decode = forward_extend


class GGUFShortConvBackend(ShortConvAttnBackend, _Convolutions):
    """The engine's backend for layers that are convolutions alone, on Ascend."""

    needs_extend_host_mirrors = False

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._know_states()

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._plan(forward_batch)

    def convolve_layer(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer_id: int,
        forward_batch: ForwardBatch,
    ) -> torch.Tensor:
        """:meth:`convolve` of a layer, in the dtype of ``x``."""
        cache = self.req_to_token_pool.mamba2_layer_cache(layer_id)
        found = self.convolve(x, weight, bias, cache.conv[0]).to(x.dtype)
        if self.windows is None:
            slots = self.forward_metadata.mamba_cache_indices
            self._track_mamba_state_decode(forward_batch, cache.conv[0], cache.temporal, slots)
        return found
