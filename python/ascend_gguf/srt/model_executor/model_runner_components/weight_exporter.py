"""The values of a weight that is served."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import torch
from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.model_runner_components.weight_exporter import WeightExporter
from sglang.srt.runtime_context import get_parallel
from torch import nn

logger = logging.getLogger(__name__)

#: What is part of a merged layer: the layer, and which part it is.
_MERGED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def get_weights_by_name(
    original: Callable, self: WeightExporter, name: str, truncate_size: int = 100
) -> list | None:
    """Overrides ``WeightExporter.get_weights_by_name``: rows of a weight, packed or not, as floats.

    Args:
        name: of the weight in the model's checkpoints, such as
            ``model.layers.0.self_attn.q_proj.weight``.
        truncate_size: the most rows, or numbers of a vector.

    Returns:
        float32 as nested lists, of what the device holds; of a layer that is cut along its output
        this rank's part.  None if there is no such weight on this rank.
    """
    try:
        return _values(self.get_model(), name, max(0, truncate_size)).tolist()
    except Exception as error:  # a request must not end the server
        logger.error("%s: no such weight on this rank: %r", name, error)
        return None


def _values(model: nn.Module, name: str, most: int) -> torch.Tensor:
    """Raises LookupError: there is no such weight."""
    modules = dict(model.named_modules())
    if expert := _EXPERT.fullmatch(name):
        if isinstance(modules.get(expert[1]), FusedMoE):
            return _expert_values(modules[expert[1]], int(expert[2]), expert[3], most)
    path, _, parameter = name.rpartition(".")
    if path == "lm_head" and path not in modules:
        path = next(p for p in modules if p.endswith("embed_tokens"))
    parent, _, leaf = path.rpartition(".")
    first, rows = 0, None
    if path not in modules and leaf in _MERGED:
        merged, part = _MERGED[leaf]
        path = f"{parent}.{merged}" if parent else merged
        sizes = modules[path].output_partition_sizes  # on this rank
        first, rows = sum(sizes[:part]), sizes[part]
    module = modules[path]
    if isinstance(module, VocabParallelEmbedding):  # without what pads the vocabulary
        rows = module.shard_indices.num_org_elements
    values = _rows_of(module, parameter, first, most if rows is None else min(most, rows))
    if isinstance(module, RowParallelLinear) and parameter == "weight":
        values = _gathered(values)
    return values


def _rows_of(
    module: nn.Module, parameter: str, first: int, count: int, expert: int | None = None
) -> torch.Tensor:
    """Rows of a parameter in whatever layout it is, float32 on the host."""
    layout = vars(module).get("gguf_layouts", {}).get(parameter)
    if layout is not None:
        last = min(layout.shape[-2], first + count)
        return layout.sample(slice(first, last), expert or 0)
    values = module._parameters[parameter]
    if values is None:
        raise KeyError(parameter)
    values = values.data if expert is None else values.data[expert]
    return values[first : first + count].cpu().float()


def _expert_values(module: FusedMoE, expert: int, projection: str, most: int) -> torch.Tensor:
    if not 0 <= expert < module.num_experts:
        raise IndexError(f"expert {expert} of {module.num_experts}")
    expert = module._map_global_expert_id_to_local_expert_id(expert)
    if expert < 0:
        raise LookupError("another rank has this expert")
    ffn = module.intermediate_size_per_partition
    if projection == "down":
        values = _rows_of(module, "w2_weight", 0, most, expert)
        return _gathered(values) if module.moe_tp_size > 1 else values
    first = 0 if projection == "gate" else ffn
    return _rows_of(module, "w13_weight", first, min(most, ffn), expert)


def _gathered(values: torch.Tensor) -> torch.Tensor:
    """Columns of all ranks, side by side."""
    group = get_parallel().tp_group
    if group.world_size == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(group.world_size)]
    torch.distributed.all_gather(parts, values.contiguous(), group=group.cpu_group)
    return torch.cat(parts, dim=-1)
