"""A small Gemma 3n."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type

from hf_models.conversion import gemma3_metadata
from hf_models.sizes import ROPE_BY_LAYER
from hf_models.tiny import Tiny


def gemma3n(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if name.startswith("model.altup"):  # the matrices of the streams, one above the other
        tensor = tensor.view(-1, config.hidden_size, config.hidden_size)
    yield f"{name}.weight" if name.endswith("_scale") else name, tensor


def gemma3n_metadata(config: Any) -> dict[str, Any]:
    normal = torch.distributions.Normal(0.0, 1.0)
    sparsity = torch.tensor(config.activation_sparsity_pattern)
    return gemma3_metadata(config) | {
        "feed_forward_length": config.intermediate_size,
        "altup.active_idx": config.altup_active_idx,
        "altup.num_inputs": config.altup_num_inputs,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "activation_sparsity_scale": normal.icdf(sparsity).tolist(),
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
        "final_logit_softcapping": config.final_logit_softcapping,
    }


#: The last ones share keys.
_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]
_LAYERS += _LAYERS[1:]

TINY: dict[str, Tiny] = {
    "gemma3n": Tiny(
        "gemma3n",
        "gemma3n_text",
        {"num_hidden_layers": 5, "num_kv_shared_layers": 2, "head_dim": 64}
        # Which two ranks pad.
        | {"intermediate_size": 160}
        | {"layer_types": _LAYERS, "activation_sparsity_pattern": [0.95, 0.6, 0.0, 0.0, 0.0]}
        | {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 32}
        | {"laurel_rank": 32, "final_logit_softcapping": 20.0, "sliding_window": 16}
        | {"tie_word_embeddings": True, "rope_parameters": ROPE_BY_LAYER},
        gemma3n_metadata,
        gemma3n,
        joined={
            f"altup_{kind}.weight": tuple(f"altup_{kind}.{i}.weight" for i in range(3))
            for kind in ("projections", "unembed_projections")
        },
        types=dict.fromkeys(
            ("altup_proj.weight", "altup_unembd_proj.weight", "per_layer_model_proj.weight")
            + ("laurel_l.weight", "laurel_r.weight", "altup_router.weight"),
            Type.F16,
        ),
    ),
}
