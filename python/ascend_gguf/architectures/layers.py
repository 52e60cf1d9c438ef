"""Which layers attend to everything and which to a window, and other attributes of many keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import Derivation
from ascend_gguf.reader import GGUFFile


def sliding_unless(every: int) -> Derivation:
    """``layer_types``: what the file's pattern says, else full attention in every n-th layer.

    A model without a window has full attention throughout.
    """

    def derive(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, Any]:
        layers = attributes["num_hidden_layers"]
        pattern = file.arch_field("attention.sliding_window_pattern", None)
        if not attributes.get("sliding_window"):
            sliding = [False] * layers
        elif pattern is not None and not isinstance(pattern, int):
            sliding = [bool(slides) for slides in pattern]
        else:
            step = every if pattern is None else pattern
            sliding = [(layer + 1) % step != 0 for layer in range(layers)]
        types = ["sliding_attention" if slides else "full_attention" for slides in sliding]
        return {"layer_types": types, "sliding_window": attributes.get("sliding_window") or None}

    return derive


def has_tensor(attribute: str, tensor: str) -> Derivation:
    """An attribute that is true where the file has a tensor."""
    return lambda file, attributes: {attribute: tensor in file.tensors}


def without_nextn(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``num_hidden_layers`` less the layers that predict further tokens, which count as blocks."""
    extra = attributes.get("num_nextn_predict_layers", 0)
    return {
        "num_hidden_layers": attributes["num_hidden_layers"] - extra,
        "num_nextn_predict_layers": extra,
    }
