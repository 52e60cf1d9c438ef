"""A layer's weight before it is loaded, and after: parameters for a layout.

While the model loads, the parameter is a :class:`~ascend_gguf.weights.pending.PendingWeight`, which
the engine's own weight loaders fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import Module, Parameter

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.pending import Order, PendingWeight


def make_pending(
    layer: Module, weight_name: str, layouts: Sequence[type[Layout]], order: Order | None = None
) -> None:
    """Let the parameter take its layout once it is loaded: the first of ``layouts`` that can.

    Call with the parameter on the device ``meta`` and the layer's device as the default one.
    """
    shell = getattr(layer, weight_name)
    pending = PendingWeight(shell.shape, shell.dtype, torch.empty(0).device, layouts, order)
    parameter = Parameter(pending, requires_grad=False)
    vars(parameter).update(vars(shell))  # its weight loader among them
    setattr(layer, weight_name, parameter)


def materialize_gguf_weights(layer: Module, weight_name: str) -> Layout | None:
    """Replace a pending parameter by the tensors of its layout.

    Returns:
        None where the layer now has dense weights, else the layout, whose tensors are the layer's
        parameters ``NAME_packed`` and so on, in place of ``NAME``.  It is also
        ``layer.gguf_layouts[NAME]``; ``layer.gguf_unsupported[NAME]`` says what kept dense weights
        from being packed.

    Raises:
        GGUFError: a part of the weight was not loaded.
    """
    parameter = getattr(layer, weight_name)
    if not isinstance(parameter, PendingWeight):
        return None
    pending = parameter.whole
    layout = pending.loaded
    if layout is None:
        what = f"{weight_name}{pending.missing()}"
        raise GGUFError(f"{what} of {type(layer).__name__} was not loaded", hint=DOWNLOAD_AGAIN)
    delattr(layer, weight_name)
    own = {k: v for k, v in vars(parameter).items() if k not in vars(pending)}
    return put_layout(layer, weight_name, layout, own)


def put_layout(
    layer: Module, weight_name: str, layout: Layout, attributes: Mapping[str, Any] | None = None
) -> Layout | None:
    """Make the tensors of a layout a layer's parameters, in place of those of another layout.

    Args:
        attributes: of a dense parameter.

    Returns:
        As :func:`materialize_gguf_weights`.
    """
    old = vars(layer).get("gguf_layouts", {}).pop(weight_name, None)
    for name in old.tensors if old is not None else ():
        delattr(layer, f"{weight_name}_{name}")
    if isinstance(layout, Dense):
        dense = Parameter(layout.tensors["weight"], requires_grad=False)
        vars(dense).update(attributes or {})
        layer.register_parameter(weight_name, dense)
        vars(layer).setdefault("gguf_unsupported", {})[weight_name] = layout.unsupported
        return None
    for name, tensor in layout.tensors.items():
        layer.register_parameter(f"{weight_name}_{name}", Parameter(tensor, requires_grad=False))
    vars(layer).setdefault("gguf_layouts", {})[weight_name] = layout
    return layout


def unpack(layer: Module, weight_name: str) -> None:
    """Replace the tensors of a layout by dense weights, as the parameter ``NAME``."""
    layout = layer.gguf_layouts.pop(weight_name)
    device = layout.device
    for name in layout.tensors:
        delattr(layer, f"{weight_name}_{name}")
    dense = layout.dequantize().to(layout.dtype).to(device)
    layer.register_parameter(weight_name, Parameter(dense, requires_grad=False))


def remove_weight(layer: Module, weight_name: str) -> None:
    """Remove a weight in whatever layout it is, with its bias among experts."""
    for name in list(layer._parameters):
        if name == weight_name or name.startswith(f"{weight_name}_"):
            delattr(layer, name)
    for record in ("gguf_layouts", "gguf_unsupported"):
        vars(layer).get(record, {}).pop(weight_name, None)
