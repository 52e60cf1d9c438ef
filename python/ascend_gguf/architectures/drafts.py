"""The layer that predicts one token more (multi-token prediction), which may draft for its model.

It is a layer like the last ones of the model, with full attention, behind a projection of the
model's last state beside the embedding of the token that was chosen.  Names are those of DeepSeek
V3's checkpoints.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from ascend_gguf.architectures.base import Architecture, Target, per_layer
from ascend_gguf.architectures.tensor_names import split_layer
from ascend_gguf.reader import GGUFFile

_PREDICTION = (
    per_layer("nextn.eh_proj.weight", "hidden 2*hidden", "eh_proj.weight"),
    # The model's own, which some files have twice.
    per_layer("nextn.embed_tokens.weight", "vocab hidden", optional=True),
    per_layer("nextn.shared_head_head.weight", "vocab hidden", optional=True),
)

_NORMS = (
    per_layer("nextn.enorm.weight", "hidden", "enorm.weight"),
    per_layer("nextn.hnorm.weight", "hidden", "hnorm.weight"),
    per_layer("nextn.shared_head_norm.weight", "hidden", "shared_head.norm.weight"),
)


def draft_map(architecture: Architecture, file: GGUFFile, config: Any) -> dict[str, Target]:
    """The place of every tensor of the first layer behind those of the model, by GGUF name.

    Raises:
        GGUFError: as :meth:`Architecture.name_map`; also if the file has no such layer.
    """
    layer = config.num_hidden_layers
    config = copy(config)
    config.num_hidden_layers, config.num_nextn_predict_layers = layer + 1, 0
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types, "full_attention"]
    # Norms are stored as the model's own.
    own = next(rule for rule in architecture.tensors if rule.gguf == "output_norm.weight")
    norms = (replace(rule, undo=own.undo, dense=own.dense) for rule in _NORMS)
    rules = (*architecture.tensors, *_PREDICTION, *norms)
    rules = tuple(rule for rule in rules if "{layer}" in rule.gguf)
    of_layer = [t for t in file.tensors.values() if split_layer(t.name)[0] == str(layer)]
    return replace(architecture, tensors=rules).map_of(file, of_layer, (layer,), config)
