"""Loading experts from GGUF blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.weights.block_tensor import BlockTensor

#: Shard of an expert -> (the parameter it is part of, the dimension tensor parallelism cuts).
#: Gate and up are cut along their output.  Down is cut along its *input*, the dimension the cut
#: gate and up produce, so that ranks hold partial sums for the layer's one all-reduce.
_SHARDS = {"w1": ("w13_weight", 0), "w3": ("w13_weight", 0), "w2": ("w2_weight", 1)}

_PROJECTIONS = {"w1": "gate", "w3": "up", "w2": "down"}


def _load_gguf_weight(
    original: Callable,
    self: FusedMoE,
    param: torch.nn.Parameter,
    loaded_weight: torch.Tensor,
    shard_id: str,
    expert_id: int,
) -> bool:
    """Overrides ``FusedMoE._load_gguf_weight``: put this rank's part of one matrix in place.

    Args:
        param: ``w13_qweight_type`` or ``w2_qweight_type`` for a block type's id, ``w13_qweight`` or
            ``w2_qweight`` for blocks, ``w13_weight`` or ``w2_weight`` for numbers.
        loaded_weight: a whole gate, up or down matrix of one expert, or the id of its type.
        shard_id: ``w1`` (gate), ``w3`` (up) or ``w2`` (down).
        expert_id: which of this rank's experts.

    Returns:
        True if the weight is in place, False if it is not one of the above (a bias).
    """
    method = self.quant_method
    key = (expert_id, shard_id)
    if getattr(param, "is_gguf_weight_type", False):
        method.types[key] = int(loaded_weight)
        return True
    weight_name, tp_dim = _SHARDS[shard_id]
    weight = getattr(self, weight_name)
    if getattr(param, "is_gguf_weight", False):
        loaded_weight = BlockTensor(loaded_weight, method.types[key])
    elif param is not weight:
        return False
    self._load_model_weight_or_group_weight_scale(
        shard_dim=tp_dim,
        expert_data=weight.data[expert_id],
        shard_id=shard_id,
        loaded_weight=loaded_weight,
    )
    method.loaded.add(key)
    return True


def check_experts(layer: FusedMoE) -> None:
    """Raises GGUFError: a matrix of an expert of this rank never came."""
    for expert in range(layer.num_local_experts):
        for shard, projection in _PROJECTIONS.items():
            if (expert, shard) not in layer.quant_method.loaded:
                raise GGUFError(
                    f"the {projection} projection of local expert {expert} of {layer.layer_name} "
                    f"was not loaded",
                    hint=DOWNLOAD_AGAIN,
                )
