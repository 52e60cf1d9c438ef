"""Model classes on the stages of a pipeline."""

from __future__ import annotations

import inspect
from copy import copy
from typing import Any

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.runtime_context import get_parallel
from torch import nn

# The first accepts hidden states from the stage before, and does nothing with them.  Layers of the
# second attend to keys of layers that another stage may have.  The third loads those of all stages.
# The last asks for a single one.  The others take apart what only the last stage gives.
_ONE_STAGE = ("Llama4ForCausalLM", "Gemma4ForCausalLM", "GraniteMoeHybridForCausalLM")
_ONE_STAGE += ("Step3p5ForCausalLM", "MiMoV2FlashForCausalLM", "NanbeigeForCausalLM")


def model_class_of(model_config: ModelConfig) -> type[nn.Module]:
    """The engine's class of a model as the loader builds it; imports the engine's models."""
    model_config = copy(model_config)
    model_config.quantization = None  # the engine has another Mixtral for other kinds
    return get_model_architecture(model_config)[0]


def has_stages(model_class: type) -> bool:
    """Whether a model class can hand its hidden states to the next stage."""
    return model_class.__name__ not in _ONE_STAGE and (
        "pp_proxy_tensors" in inspect.signature(model_class.forward).parameters
    )


def run_all_layers(model: nn.Module) -> None:
    """Let a model without stages run all of its layers on each rank.

    ``models/starcoder2.py`` and ``models/phi.py`` take the process's rank for its stage, so with
    tensor parallelism all ranks but the first look for layers behind the last one.
    """
    if has_stages(type(model)):
        return
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and "start_layer" in vars(module):
            module.start_layer, module.end_layer = 0, len(layers)


def untie_on_last_stage(config: Any) -> None:
    """Let a model with one matrix for embedding and output have its own copy on the last stage.

    The embedding is on the first one, and some classes have no output matrix then.
    """
    group = get_parallel().pp_group
    if group.world_size > 1 and group.is_last_rank:
        config.tie_word_embeddings = False
