"""Weights that are loaded past a model's own ``load_weights``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from torch import nn

#: What is given a model, a weight's name and its data: it loads the weight, or returns False.
Take = Callable[[nn.Module, str, torch.Tensor], bool]


def load_first(model: Any, take: Take) -> None:
    """Let ``take`` have each weight first; the model's own ``load_weights`` gets the others."""
    model.load_weights = partial(_load_weights, model, model.load_weights, take)


def _load_weights(
    model: nn.Module,
    original: Callable,
    take: Take,
    weights: Iterable[tuple[str, torch.Tensor]],
    **options: Any,
) -> Any:
    return original((named for named in weights if not take(model, *named)), **options)


def load_directly(model: nn.Module, names: str) -> None:
    """Load tensors into the parameters of their names, as they are.

    Args:
        names: a regular expression that begins what their names begin with.
    """

    def take(model: nn.Module, name: str, data: torch.Tensor) -> bool:
        if not re.match(names, name):
            return False
        if (parameter := _parameter(model, name)) is not None:
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, data)
        return True

    load_first(model, take)


def load_parts(model: nn.Module, names: str, merged: str, shards: Mapping[str, Any]) -> None:
    """Load tensors that are apart in a file, perhaps in types of their own, and one in the model.

    Args:
        names: a regular expression of what is ``merged`` in the model; its group is the part.
        shards: the part to what the engine's weight loader calls it.
    """

    def take(model: nn.Module, name: str, data: torch.Tensor) -> bool:
        match = re.search(names, name)
        if match and (parameter := _parameter(model, re.sub(names, merged, name))) is not None:
            parameter.weight_loader(parameter, data, shards[match[1]])
        return match is not None

    load_first(model, take)


def _parameter(model: nn.Module, name: str) -> Any:
    """None where another stage of a pipeline has it."""
    try:
        return model.get_parameter(name)
    except AttributeError:
        return None
