"""LoRA adapters beside packed weights: one that would be applied in part, or not fit, is refused.

The engine leaves out what it finds no module for, with a warning, and what has another shape ends
the server when the first request asks for the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.lora.lora import LoRAAdapter
from sglang.srt.lora.lora_manager import LoRAManager
from sglang.srt.lora.utils import get_target_module_name
from torch import nn

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.overrides import override_methods


def leave_out_experts(model: nn.Module) -> None:
    """Adapters are added to attention, dense layers and shared experts: experts stay packed."""
    wanted = getattr(model, "should_apply_lora", None)
    experts = {name for name, module in model.named_modules() if isinstance(module, FusedMoE)}
    if experts:
        model.should_apply_lora = lambda name: (
            name not in experts and (wanted is None or wanted(name))
        )


@contextmanager
def one_error(path: str) -> Iterator[None]:
    """What the engine raises for adapters as one error.

    Raises:
        GGUFError: the engine raised something else.
    """
    try:
        yield
    except GGUFError:
        raise
    except Exception as error:  # each of its checks raises another
        problem = f"there is no {error}" if isinstance(error, KeyError) else error
        if isinstance(error, AttributeError) and error.name == "weight":
            problem = "embedding and output matrix are packed, and take none"
        raise GGUFError(f"SGLang cannot add LoRA adapters: {problem}", file=path) from error


def check_adapters(manager: LoRAManager) -> None:
    """Check the adapters of the start, and from now on those that are loaded later.

    Raises:
        GGUFError: an adapter has weights that the model has no place for.
    """
    for adapter in manager.loras.values():
        _check(manager, adapter)
    override_methods(manager, load_lora_weights=_load, load_lora_weights_from_tensors=_load)


def _load(original: Callable, self: LoRAManager, lora_ref: Any, *tensors: Any) -> None:
    original(self, lora_ref, *tensors)
    try:
        _check(self, self.loras[lora_ref.lora_id])
    except GGUFError:
        del self.loras[lora_ref.lora_id], self.configs[lora_ref.lora_id]
        raise


def _check(manager: LoRAManager, adapter: LoRAAdapter) -> None:
    for layer, held in enumerate(adapter.layers):
        for name, weight in held.weights.items():
            if problem := _problem(manager, layer, name, weight):
                raise GGUFError(
                    f"LoRA adapter: {problem}",
                    file=adapter.config.path,
                    tensor=name,
                    hint="Train the adapter on modules that SGLang's class of this model has.",
                )


def _problem(manager: LoRAManager, layer: int, name: str, weight: Any) -> str | None:
    """Why a weight of an adapter cannot be added; None if it can."""
    if "experts." in name and "shared_expert" not in name:
        return "experts of a GGUF model take no adapters"
    try:
        target = get_target_module_name(name, manager.target_modules)
    except ValueError:
        return "the model has no such module"
    modules = manager.lora_modules[layer]
    places = [module for found, module in modules.items() if found.endswith(f".{target}")]
    if len(places) != 1:  # the engine tells them by their last name alone
        return f"the layer has {len(places) or 'no'} modules {target}"
    if "lora_A" in name:
        sliced, buffer = places[0].slice_lora_a_weights(weight), manager.memory_pool.A_buffer
        found, expected = sliced.shape[-1], buffer[target][layer].shape[-1]
    else:
        sliced, buffer = places[0].slice_lora_b_weights(weight), manager.memory_pool.B_buffer
        found, expected = sliced.shape[-2], buffer[target][layer].shape[-2]
    return f"it is {found} wide, the model {expected}" if found != expected else None
