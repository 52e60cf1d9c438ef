"""Attributes that a user overrides (``--json-model-override-args``), as model cards write them.

transformers 5 keeps all RoPE parameters in ``rope_parameters``, per kind of layer if they differ.
``rope_theta`` and ``rope_scaling`` of older model cards go there.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ascend_gguf.architectures.rope import usual_attention
from ascend_gguf.errors import GGUFError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OPTION = "--json-model-override-args"

#: Parameters that do not change with the type of scaling.
_NOT_OF_SCALING = ("rope_theta", "partial_rotary_factor")

#: Other names of an attribute in some configurations.
_ALIASES = {
    "num_experts_per_tok": ("moe_k", "moe_topk"),
    "num_experts": ("moe_num_experts", "num_local_experts", "n_routed_experts"),
}


def apply_overrides(config: PretrainedConfig, overrides: Mapping[str, Any]) -> list[str]:
    """Override attributes of a model's configuration.

    A dictionary updates single entries, as in the engine; ``rope_scaling``, and ``rope_parameters``
    with a type, replace the previous scaling.

    Returns:
        Names of attributes that the configuration did not have; most likely nothing reads them.

    Raises:
        GGUFError: RoPE scaling that transformers refuses.
    """
    overrides = dict(overrides)
    text = overrides.pop("text_config", None)
    if isinstance(text, Mapping) and not hasattr(config, "text_config"):
        overrides = {**text, **overrides}  # from the model card of a vision model
    elif text is not None:
        overrides["text_config"] = text
    _set_rope(config, overrides)
    unknown = []
    for name, value in overrides.items():
        names = (name, *_ALIASES.get(name, ()))
        known = next((name for name in names if hasattr(config, name)), None)
        if known is None:
            unknown.append(name)
        current = getattr(config, known or name, None)
        merge = isinstance(current, dict) and isinstance(value, dict)
        setattr(config, known or name, current | value if merge else value)
    return unknown


def _set_rope(config: PretrainedConfig, overrides: dict[str, Any]) -> None:
    """Apply the RoPE parameters and remove them from ``overrides``."""
    found = deepcopy(getattr(config, "rope_parameters", None))
    if not found:
        return
    names = {"rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"}
    given = {name: overrides.pop(name) for name in names & overrides.keys()}
    if not given:
        return
    nested = "full_attention" in found
    full = found["full_attention"] if nested else found
    parameters = given.get("rope_parameters") or {}
    by_layer = {kind: p for kind, p in parameters.items() if isinstance(p, Mapping)}
    if by_layer and not nested:
        parameters = by_layer.get("full_attention", {})
    for kind, changes in by_layer.items() if nested else ():
        _change(found.setdefault(kind, {}), changes)
    if not (by_layer and nested):
        _change(full, parameters)
    if "rope_scaling" in given:
        scaling = _typed(given["rope_scaling"] or {"rope_type": "default"})
        if "rope_type" not in scaling:
            raise GGUFError(
                f"{_OPTION}: rope_scaling has no rope_type",
                found=given["rope_scaling"],
                expected="linear, yarn, llama3 or another",
            )
        _change(full, scaling)
    if "rope_theta" in given:
        full["rope_theta"] = given["rope_theta"]
    if "rope_local_base_freq" in given and nested:
        found["sliding_attention"]["rope_theta"] = given["rope_local_base_freq"]
    for one in (full, found.get("sliding_attention") if nested else None):
        if one is not None:
            _complete(one, config)
    config.rope_parameters = found
    try:
        config.validate_rope()
    except (ValueError, KeyError, TypeError) as error:
        raise GGUFError(
            f"{_OPTION}: transformers refuses these RoPE parameters: {error}", found=given
        ) from error


def _change(parameters: dict[str, Any], changes: Mapping[str, Any]) -> None:
    changes = _typed(changes)
    if "rope_type" in changes:
        for name in parameters.keys() - set(_NOT_OF_SCALING):
            del parameters[name]
    parameters.update(changes)


def _typed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """With the current name of the type of scaling."""
    changes = dict(changes)
    if "type" in changes:
        changes.setdefault("rope_type", changes.pop("type"))
    if changes.get("rope_type") == "su":
        changes["rope_type"] = "longrope"
    return changes


def _complete(parameters: dict[str, Any], config: PretrainedConfig) -> None:
    """Add what transformers adds to such parameters, and the engine's name of one of them."""
    kind = parameters.get("rope_type")
    if kind in ("yarn", "llama3", "longrope"):
        trained = config.max_position_embeddings
        parameters.setdefault("original_max_position_embeddings", trained)
    if kind == "yarn" and parameters.get("attention_factor") and parameters.get("factor"):
        usual = usual_attention(parameters["factor"])
        parameters["attn_factor"] = parameters["attention_factor"] / usual
