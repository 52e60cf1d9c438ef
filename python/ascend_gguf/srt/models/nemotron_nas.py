"""DeciLM and Llama-Nemotron, by what each layer of the file has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.layers.utils import PPMissingLayer, get_layer_id
from sglang.srt.models.llama import LlamaMLP
from sglang.srt.runtime_context import get_parallel
from torch import nn

from ascend_gguf.architectures.dimensions import heads_of, of_layer
from ascend_gguf.srt.models.direct_loading import load_first

#: What the engine rounds widths of feed-forward networks up to.
_MULTIPLE = 256


def set_blocks(config: Any) -> None:
    """``block_configs``, as the engine has the sizes of layers."""
    config.block_configs = [_block(config, layer) for layer in range(config.num_hidden_layers)]


def _block(config: Any, layer: int) -> Any:
    heads, kv_heads = heads_of(config, layer)
    width = of_layer(config, layer).intermediate_size
    return SimpleNamespace(
        # A matrix takes the place of attention with one head for keys.
        attention=SimpleNamespace(no_op=not heads, n_heads_in_group=heads // max(1, kv_heads)),
        ffn=SimpleNamespace(no_op=not width, ffn_mult=1.5 * width / config.hidden_size),
    )


def repair_model(causal_lm: Any, config: Any) -> None:
    """``DeciLMForCausalLM``: its part of a pipeline; its layers are as the file has them."""
    model = causal_lm.model
    model.quant_config = None  # it would be asked for scales of the KV cache
    causal_lm.start_layer, causal_lm.end_layer = model.start_layer, model.end_layer
    if not get_parallel().pp_group.is_last_rank:
        causal_lm.lm_head = PPMissingLayer()
    load_first(causal_lm, _is_of_other_stage)
    layers = range(model.start_layer, model.end_layer)
    first = next((i for i in layers if heads_of(config, i)[1]), 0)
    for number in layers:
        layer, (heads, kv_heads) = model.layers[number], heads_of(config, number)
        if kv_heads:
            layer.self_attn.start_layer = first  # computes sines and cosines for all on an NPU
        elif heads:
            layer.self_attn = _Matrix(layer.self_attn.o_proj, f"model.layers.{number}.self_attn")
        width = of_layer(config, number).intermediate_size
        if width % _MULTIPLE:
            layer.mlp = LlamaMLP(
                hidden_size=config.hidden_size,
                intermediate_size=width,
                hidden_act=config.hidden_act,
                quant_config=layer.mlp.down_proj.quant_config,
                prefix=f"model.layers.{number}.mlp",
                reduce_results=layer.mlp.down_proj.reduce_results,
            )


def _is_of_other_stage(model: Any, name: str, data: torch.Tensor) -> bool:
    """Whether the model has no place for a weight: it warns of each of them."""
    layer = get_layer_id(name)
    if layer is not None:
        return not model.start_layer <= layer < model.end_layer
    return isinstance(model.get_submodule(name.rpartition(".")[0]), PPMissingLayer)


class _Matrix(nn.Module):
    """What some layers have instead of attention: of each token by itself."""

    def __init__(self, like: RowParallelLinear, prefix: str) -> None:
        super().__init__()
        self.linear_attn = RowParallelLinear(
            like.output_size,
            like.output_size,
            bias=False,
            input_is_parallel=False,
            quant_config=like.quant_config,
            reduce_results=like.reduce_results,
            prefix=f"{prefix}.linear_attn",
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: Any
    ) -> torch.Tensor:
        return self.linear_attn(hidden_states)[0]
