"""A model that drafts for itself, by the layer of its file that predicts one token more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.runtime_context import get_spec
from torch import nn

from ascend_gguf.architectures import Placement, Target, architecture_of
from ascend_gguf.architectures.drafts import draft_map
from ascend_gguf.config import load_config
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt.overrides import override_methods

_DEEPSEEK, _GLM = "DeepseekV3ForCausalLMNextN", "Glm4MoeForCausalLMNextN"
_QWEN = "Qwen3_5ForCausalLMMTP"

#: The engine's class of a model to that of the layer, which it finds in the same file.
DRAFTS = {
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Glm4MoeForCausalLM": _GLM,
    "Qwen3_5ForCausalLM": _QWEN,
    "Qwen3_5MoeForCausalLM": _QWEN,
}

#: What the names of tensors of the block begin with, in the engine's classes but Qwen's.
BLOCK = "model.decoder."

_DECODER = {
    **{name: f"model.{name}" for name in ("eh_proj", "enorm", "hnorm", "shared_head.norm")},
    "": BLOCK,
}

#: What the engine's classes call the layer's tensors; those of the block begin with the last name.
_NAMES = {
    _DEEPSEEK: _DECODER,
    _GLM: _DECODER,
    _QWEN: {
        "eh_proj": "mtp.fc",
        "enorm": "mtp.pre_fc_norm_embedding",
        "hnorm": "mtp.pre_fc_norm_hidden",
        "shared_head.norm": "mtp.norm",
        "": "mtp.layers.0.",
    },
}


def is_draft(config: Any) -> bool:
    """True for the engine's configuration of such a layer."""
    return (config.architectures or [""])[0] in DRAFTS.values()


def is_layer(model: nn.Module) -> bool:
    """True for the engine's module of such a layer."""
    return not _names_of(model).isdisjoint(DRAFTS.values())


def _names_of(model: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(model).__mro__}


def name_map_of(path: str) -> dict[str, Target]:
    """Where the tensors of the layer in the file at ``path`` go in the engine's module of it."""
    config, file = load_config(path), open_gguf(path)
    prefix = f"model.layers.{config.num_hidden_layers}."
    names = _NAMES[DRAFTS[config.architectures[0]]]

    def of_module(name: str) -> str:
        name = name.removeprefix(prefix)
        start = next(start for start in names if name.startswith(start))
        return names[start] + name.removeprefix(start)

    def moved(target: Target) -> Target:
        if isinstance(target, Placement):
            return replace(target, names=tuple(map(of_module, target.names)))
        return of_module(target) if isinstance(target, str) else tuple(map(of_module, target))

    found = draft_map(architecture_of(file), file, config)
    return {name: moved(target) for name, target in found.items()}


def share(model: nn.Module, path: str) -> None:
    """Let a model and its layer for drafts have one embedding and one output matrix.

    The engine hands over their dense weights; packed layers are handed over whole.
    """
    if is_layer(model):
        model.model.embed_tokens = model.lm_head = None
        override_methods(model, set_embed_and_head=_set_embed_and_head)
        if not _names_of(model).isdisjoint((_DEEPSEEK, _GLM)):
            override_methods(model, load_weights=_load_weights)
    elif _names_of(model) & DRAFTS.keys() and _drafts_by(path):
        override_methods(model, get_embed_and_head=_get_embed_and_head)


def _drafts_by(path: str) -> bool:
    """True if the file at ``path`` has the layer that drafts; the engine may leave that out."""
    spec = get_spec()
    return bool(spec.speculative_algorithm) and spec.speculative_draft_model_path in (None, path)


def _get_embed_and_head(original: Callable, self: Any) -> tuple[nn.Module, nn.Module]:
    return self.model.embed_tokens, self.lm_head


def _set_embed_and_head(original: Callable, self: Any, embed: nn.Module, head: nn.Module) -> None:
    self.model.embed_tokens, self.lm_head = embed, head


def _load_weights(
    original: Callable, self: Any, weights: Iterable[tuple[str, torch.Tensor]], **options: Any
) -> None:
    """The engine looks for the names of a checkpoint."""
    prefix = f"model.layers.{self.config.num_hidden_layers}."
    names = (BLOCK, "model.")

    def named(name: str) -> str:
        start = next(start for start in names if name.startswith(start))
        return prefix + name.removeprefix(start)

    original(self, ((named(name), data) for name, data in weights), **options)
