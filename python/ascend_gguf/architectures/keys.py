"""Keys that change what a model computes in llama.cpp, and that the engine's model does not follow.

A key that an architecture does not follow (:attr:`Architecture.obeyed`) may only have a value that
changes nothing.  Any other value is refused by name: ignoring it would give wrong answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture
from ascend_gguf.architectures.metadata import Attributes, number
from ascend_gguf.reader import GGUFFile

#: Keys that concern mixtures of experts only.
_ROUTING = ("expert_", "experts_", "moe_", "leading_dense_block_count", "interleave_moe_")

#: Keys of which zero is none (gguf's ``Keys``; ``hparams`` in llama.cpp).
_NONE = (
    "embedding_length_per_layer_input attn_logit_softcapping router_logit_softcapping "
    "final_logit_softcapping activation_sparsity_scale n_deepstack_layers hash_layer_count "
    "swiglu_clamp_exp swiglu_clamp_shexp leading_dense_block_count moe_latent_size expert_count "
    "expert_chunk_feed_forward_length expert_latent_length attention.max_alibi_bias "
    "attention.clamp_kqv attention.temperature_scale attention.q_lora_rank attention.kv_lora_rank "
    "attention.key_length_mla attention.value_length_mla attention.shared_kv_layers "
    "attention.recurrent_layers attention.compress_ratios attention.indexer.head_count "
    "attention.indexer.top_k rope.scaling.alpha rope.scaling.yarn_log_multiplier"
).split()
#: Factors and numbers of which one changes nothing either.
_ONCE = (
    "logit_scale embedding_scale residual_scale num_loops interleave_moe_layer_step "
    "moe_every_n_layers expert_group_count expert_weights_scale experts_per_group "
    "attention.output_scale attention.value_scale hyper_connection.count"
).split()

#: Key -> values that change nothing.
_NEUTRAL: dict[str, tuple] = {
    **dict.fromkeys(_NONE, (0,)),
    **dict.fromkeys(_ONCE, (0, 1)),
    "use_parallel_residual": (False,),
    "hidden_activation": ("silu", "swiglu"),
    "deepstack_mapping": (-1,),
    "attention.causal": (True,),
    "attention.rope_pattern": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
}

#: The same, if the values depend on the model.
_DERIVED: dict[str, Callable[[GGUFFile, Attributes], tuple]] = {
    "embedding_length_out": lambda file, sizes: (0, sizes["hidden_size"]),
    "attention.key_length": lambda file, sizes: (_head(sizes),),
    "attention.value_length": lambda file, sizes: (_head(sizes),),
    "attention.key_length_swa": lambda file, sizes: (_swa_head(sizes),),
    "attention.value_length_swa": lambda file, sizes: (_swa_head(sizes),),
    "attention.scale": lambda file, sizes: (0, _head(sizes) ** -0.5),
    "attention.sliding_window": lambda file, sizes: (0,),
    "rope.dimension_count": lambda file, sizes: (_head(sizes),),
    "rope.dimension_count_swa": lambda file, sizes: (
        sizes.get("swa_head_dim") or number(file, "rope.dimension_count") or _head(sizes),
    ),
    "rope.freq_base_swa": lambda file, sizes: (number(file, "rope.freq_base", float) or 10000.0,),
}


def check_keys(file: GGUFFile, architecture: Architecture, attributes: Attributes) -> None:
    """Refuse keys that the model would ignore.

    Args:
        attributes: of the model's configuration.

    Raises:
        GGUFError: names the first such key.
    """
    _check_window(file, attributes)
    for name, value in _unobeyed(file, architecture):
        allowed = architecture.fixed.get(name) or _NEUTRAL.get(name)
        if name in _DERIVED and name not in architecture.fixed:
            allowed = _DERIVED[name](file, attributes)
        if allowed is None or _says_nothing(name, value, allowed, attributes):
            continue
        raise file.error(
            "SGLang's model does not support this value of the key",
            name,
            found=f"{value if not isinstance(value, np.ndarray) else value.tolist()!s:.80}",
            expected=" or ".join(
                f"{value:g}" if _is_number(value) else f"{value}" for value in allowed
            ),
            hint="Answers would be wrong. Serve this file with another engine.",
        )


def _check_window(file: GGUFFile, attributes: Attributes) -> None:
    """Refuse a window of one token, which ``RadixAttention`` takes for none."""
    if attributes.get("sliding_window") == 1:
        raise file.error(
            "SGLang's model does not support this value of the key",
            "attention.sliding_window",
            found=1,
            expected="at least 2",
            hint="Answers would be wrong. Serve this file with another engine.",
        )


def _unobeyed(file: GGUFFile, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    prefix = f"{file.architecture}."
    dense = "expert_count" not in architecture.fields and not number(file, "expert_count", least=0)
    still = architecture.rope is rope.absent
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in architecture.obeyed:
            continue
        if still and name.startswith("rope.") and name not in architecture.fixed:
            continue  # no rotary embedding: its keys say nothing
        if not (dense and name.startswith(_ROUTING)):
            yield name, value


def _says_nothing(name: str, value: Any, allowed: tuple, attributes: Attributes) -> bool:
    if name == "expert_gating_func" and value == 0:
        return True  # means none in llama.cpp
    if name == "attention.sliding_window" and not isinstance(value, np.ndarray):
        # No prompt is longer than the window.
        if _is_number(value) and value >= attributes["max_position_embeddings"]:
            return True
    values = value.tolist() if isinstance(value, np.ndarray) else [value]
    return all(any(_same(value, other) for other in allowed) for value in values)


def _same(value: Any, other: Any) -> bool:
    if _is_number(value) and _is_number(other):
        return math.isclose(value, other, rel_tol=1e-6)
    return value == other


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _head(attributes: Attributes) -> int:
    found = attributes.get("head_dim")
    return found or attributes["hidden_size"] // attributes["num_attention_heads"]


def _swa_head(attributes: Attributes) -> int:
    return attributes.get("swa_head_dim") or _head(attributes)
