"""Parameters that take GGUF blocks.

The engine's protocol for a GGUF matrix is two tensors: ``NAME.qweight_type``, the id of the block
type, and ``NAME.qweight``, the blocks.  :func:`accept_blocks` gives a layer parameters of those
names which forward to the layer's real ``weight``: the blocks arrive there as a
:class:`~ascend_gguf.BlockTensor`, with their logical rows and columns, so that the engine's own
weight loaders cut and merge them like any other weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.utils import set_weight_attrs
from torch.nn import Module, Parameter

from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.pending import PendingPieces, PendingWeight


def block_names(weight_name: str) -> tuple[str, str]:
    """``w13_weight`` to ``("w13_qweight", "w13_qweight_type")``."""
    qweight = weight_name.removesuffix("weight") + "qweight"
    return qweight, qweight + "_type"


def register_block_parameters(
    layer: Module, weight_name: str, load_type: Callable, load_blocks: Callable
) -> None:
    """Give ``layer`` the empty parameters ``qweight`` and ``qweight_type`` beside a weight.

    ``load_type`` and ``load_blocks`` are their weight loaders: ``(parameter, tensor, ...)`` with
    whatever else the model passes to the loader of the weight itself.
    """
    qweight, qweight_type = block_names(weight_name)
    for name, loader, flag in (
        (qweight, load_blocks, "is_gguf_weight"),
        (qweight_type, load_type, "is_gguf_weight_type"),
    ):
        parameter = Parameter(torch.empty(0, dtype=torch.uint8), requires_grad=False)
        set_weight_attrs(parameter, {"weight_loader": loader, flag: True})
        layer.register_parameter(name, parameter)


def accept_blocks(layer: Module, weight_name: str = "weight") -> None:
    """Let ``layer`` load its parameter ``weight_name`` from GGUF blocks as well as from numbers.

    :func:`stop_accepting_blocks` undoes it once everything is loaded.
    """
    weight = getattr(layer, weight_name)
    load_weight: Callable = getattr(weight, "weight_loader", default_weight_loader)
    # Merged layers and experts load one shard at a time: a type for each.
    types: dict[tuple, int] = {}

    def load_type(_: Parameter, ggml_type: torch.Tensor, *shard: Any, **named: Any) -> None:
        types[_shard_key(shard, named)] = int(ggml_type)

    def load_blocks(_: Parameter, blocks: torch.Tensor, *shard: Any, **named: Any) -> None:
        matrix = BlockTensor(blocks, types[_shard_key(shard, named)])
        load_weight(weight, matrix, *shard, **named)

    register_block_parameters(layer, weight_name, load_type, load_blocks)


def stop_accepting_blocks(layer: Module, weight_name: str = "weight") -> None:
    """Remove what :func:`register_block_parameters` added, if anything."""
    for name in block_names(weight_name):
        if name in layer._parameters:
            delattr(layer, name)


def _shard_key(shard: tuple, named: dict[str, Any]) -> tuple:
    # For experts a model also passes the parameter's name, in which the type and the blocks differ.
    values = (*shard, *(named[key] for key in sorted(named)))
    return tuple(v for v in values if not (isinstance(v, str) and "qweight" in v))


def make_pending(layer: Module, weight_name: str, layouts: Sequence[type[Layout]]) -> None:
    """Let the parameter take its layout once it is loaded: the first of ``layouts`` that can.

    Call with the parameter on the device ``meta`` and the layer's device as the default one.
    """
    shell = getattr(layer, weight_name)
    pending = PendingPieces(shell.shape, shell.dtype, torch.empty(0).device, layouts)
    parameter = Parameter(PendingWeight(pending), requires_grad=False)
    vars(parameter).update(vars(shell))
    setattr(layer, weight_name, parameter)


def unpack(layer: Module, weight_name: str) -> None:
    """Put the numbers of a layout in its place, as the parameter ``NAME``."""
    layout = layer.gguf_layouts.pop(weight_name)
    device = next(iter(layout.tensors.values())).device
    for name in layout.tensors:
        delattr(layer, f"{weight_name}_{name}")
    numbers = layout.dequantize().to(layout.dtype).to(device)
    layer.register_parameter(weight_name, Parameter(numbers, requires_grad=False))


def finalize(layer: Module, weight_name: str) -> Layout | None:
    """Put what a pending parameter became in its place.

    Returns:
        None where the layer now has a plain parameter of numbers, else the layout, whose tensors
        are the layer's parameters ``NAME_packed`` and so on, in place of ``NAME``.  It is also
        ``layer.gguf_layouts[NAME]``; ``layer.gguf_unsupported[NAME]`` says what kept numbers from
        being packed.
    """
    parameter = getattr(layer, weight_name)
    if not isinstance(parameter.data, PendingWeight):
        return None
    layout = parameter.data.pending.layout
    delattr(layer, weight_name)
    if isinstance(layout, Dense):
        numbers = Parameter(layout.tensors["weight"], requires_grad=False)
        vars(numbers).update(vars(parameter))
        layer.register_parameter(weight_name, numbers)
        vars(layer).setdefault("gguf_unsupported", {})[weight_name] = layout.unsupported
        return None
    for name, tensor in layout.tensors.items():
        layer.register_parameter(f"{weight_name}_{name}", Parameter(tensor, requires_grad=False))
    vars(layer).setdefault("gguf_layouts", {})[weight_name] = layout
    return layout


def remove_weight(layer: Module, weight_name: str) -> None:
    """Remove a weight in whatever layout it is, its bias among experts, and what takes blocks."""
    stop_accepting_blocks(layer, weight_name)
    for name in list(layer._parameters):
        if name == weight_name or name.startswith(f"{weight_name}_"):
            delattr(layer, name)
    for record in ("gguf_layouts", "gguf_unsupported"):
        vars(layer).get(record, {}).pop(weight_name, None)
