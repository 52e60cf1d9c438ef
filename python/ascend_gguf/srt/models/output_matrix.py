"""The output matrix, of classes whose loaders leave out some forms of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

_PREFIX = "lm_head."


def load_output_matrix(model: Any, config: Any) -> None:
    """Load ``lm_head`` from blocks and from numbers, past the model's own ``load_weights``."""
    model.load_weights = partial(_load_weights, model, model.load_weights)


def _load_weights(
    model: torch.nn.Module, original: Callable, weights: Iterable[tuple[str, torch.Tensor]]
) -> Any:
    def others() -> Iterator[tuple[str, torch.Tensor]]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, data in weights:
            if not name.startswith(_PREFIX):
                yield name, data
            elif name in parameters:  # another stage of a pipeline has it otherwise
                parameters[name].weight_loader(parameters[name], data)

    return original(others())
