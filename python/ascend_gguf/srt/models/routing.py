"""How a model chooses experts, where the engine's class says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def route(**options: Any) -> Callable[[Any, Any], None]:
    """A repair of a block of experts: options of its ``topk``."""

    def repair(block: Any, config: Any) -> None:
        for name, value in options.items():
            setattr(block.topk.topk_config, name, value)

    return repair


#: The engine leaves ``routed_scaling_factor`` to what runs the experts, which does not know of it
#: on the CPU and on Ascend.
scale = route(apply_routed_scaling_factor_on_output=True)

#: With a bias the engine takes sigmoids, whatever it is told; on Ascend it takes the softmax unless
#: it is told.
by_sigmoid = route(scoring_func="sigmoid")

#: The weight of a single expert is one, too: transformers and llama.cpp (``build_moe_ffn`` with
#: ``norm_w``) renormalise whatever was chosen.
renormalize = route(renormalize=True)


def renormalize_as_configured(block: Any, config: Any) -> None:
    """As transformers (``norm_topk_prob``) and llama.cpp do, whatever the weights' format.

    The engine switches it off for GGUF.
    """
    block.topk.topk_config.renormalize = getattr(config, "norm_topk_prob", True)
