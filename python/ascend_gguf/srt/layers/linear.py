"""Linear layers that the engine's models make without a method for GGUF: gpt-oss's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.gguf import GGUFConfig, is_layer_skipped_gguf
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from torch import nn

from ascend_gguf.srt.layers.quantization.gguf import GGUFLinearAscendMethod


def pack_linears(model: nn.Module, quant_config: GGUFConfig) -> None:
    """Let sharded layers hold packed weights, whatever the model's class says.

    Routers and the like are whole on every rank, and stay as they are.  Call before loading, with
    the model's dtype and device as the default ones.
    """
    kinds = (ColumnParallelLinear, RowParallelLinear)
    for module in layers_without_method(model, quant_config, kinds, UnquantizedLinearMethod):
        if module.weight.dim() == 2:  # no convolution
            _use_gguf_method(module, quant_config)


def layers_without_method(
    model: nn.Module,
    quant_config: GGUFConfig,
    kinds: tuple[type[nn.Module], ...],
    plain_method: type,
) -> Iterator[nn.Module]:
    """Layers of some kinds that have the engine's method for unquantized weights."""
    for name, module in model.named_modules():
        if (
            isinstance(module, kinds)
            and type(module.quant_method) is plain_method
            and not is_layer_skipped_gguf(name, quant_config.modules_to_not_convert)
        ):
            yield module


def _use_gguf_method(
    module: ColumnParallelLinear | RowParallelLinear, quant_config: GGUFConfig
) -> None:
    cuts_rows = isinstance(module, ColumnParallelLinear)
    width, dtype = module.weight.shape[1], module.weight.dtype
    del module.weight
    module.quant_method = GGUFLinearAscendMethod(quant_config)
    module.quant_method.create_weights(
        module,
        width,
        module.output_partition_sizes if cuts_rows else [module.output_size],
        module.input_size,
        module.output_size,
        dtype,
        weight_loader=module.weight_loader,
    )


def wrap_loader(layer: nn.Module, wrap: Callable[[Callable], Callable]) -> None:
    """Load a layer's weight by what ``wrap`` makes of its weight loader."""
    method = layer.quant_method
    if isinstance(method, GGUFLinearAscendMethod):
        method.wrap_loader(layer, wrap)
    else:
        layer.weight.weight_loader = wrap(layer.weight_loader)
