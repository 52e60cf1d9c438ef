"""Routing and loading of Ling and Ring."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ascend_gguf.srt.overrides import override_methods

_PROJECTION = re.compile(r"(?<=\.attention\.)([qkv])_proj(?=\.)")


def scale_topk(block: torch.nn.Module, config: Any) -> None:
    """``BailingMoESparseMoeBlock``: scale the chosen experts' weights.

    The engine leaves ``routed_scaling_factor`` to what runs the experts, which does not know of it
    on the CPU and on Ascend.
    """
    block.topk.topk_config.apply_routed_scaling_factor_on_output = True


def repair_loading(model: Any, config: Any) -> None:
    """``BailingMoEForCausalLM``: q, k and v are apart in a file, perhaps in types of their own."""
    override_methods(model, load_weights=_load_weights)


def _load_weights(
    original: Callable, self: Any, weights: Iterable[tuple[str, torch.Tensor]], **options: Any
) -> Any:
    def others() -> Iterator[tuple[str, torch.Tensor]]:
        parameters = dict(self.named_parameters())
        for name, data in weights:
            match = _PROJECTION.search(name)
            if match is None:
                yield name, data
                continue
            # None: on another stage of the pipeline.
            parameter = parameters.get(_PROJECTION.sub("query_key_value", name))
            if parameter is not None:
                parameter.weight_loader(parameter, data, match[1])

    return original(self, others(), **options)
