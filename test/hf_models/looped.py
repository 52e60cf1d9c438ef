"""Nanbeige: transformers' Llama, whose layers run several times.

transformers has no class of it, which came as code with the checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_models.deci import AutoConfig


class LoopedLlamaConfig(LlamaConfig):
    model_type = "looped_llama"


class _Layers(nn.ModuleList):
    """Layers that a model's forward, which asks for a slice of them, sees in all loops."""

    loops: Callable[[list[nn.Module]], list[Callable]]

    def __getitem__(self, index: Any) -> Any:
        return self.loops(list(self)) if isinstance(index, slice) else super().__getitem__(index)


class LoopedLlamaForCausalLM(LlamaForCausalLM):
    config_class = LoopedLlamaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers = _Layers(self.model.layers)
        self.model.layers.loops = self._loops

    def _loops(self, layers: list[nn.Module]) -> list[Callable]:
        found: list[Callable] = list(layers)
        for _ in range(1, self.config.num_loops):
            if not self.config.skip_loop_final_norm:
                found.append(lambda hidden, **_: self.model.norm(hidden))
            found += layers
        return found

    def forward(self, input_ids: Any, **options: Any) -> Any:
        return super().forward(input_ids, **options | {"use_cache": False})


AutoConfig.register(LoopedLlamaConfig.model_type, LoopedLlamaConfig)
