"""Tensors that are loaded past a model's own ``load_weights``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader


def load_directly(model: torch.nn.Module, names: str) -> None:
    """Load tensors into the parameters of their names, as they are.

    Args:
        names: a regular expression that begins what their names begin with.
    """
    model.load_weights = partial(_load_weights, model, model.load_weights, re.compile(names))


def _load_weights(
    model: torch.nn.Module,
    original: Callable,
    names: re.Pattern[str],
    weights: Iterable[tuple[str, torch.Tensor]],
) -> Any:
    def others() -> Iterator[tuple[str, torch.Tensor]]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, data in weights:
            if not names.match(name):
                yield name, data
            elif name in parameters:  # another stage of a pipeline may have it
                parameter = parameters[name]
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, data)

    return original(others())
