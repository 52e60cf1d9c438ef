"""Linear, embedding and MoE methods for GGUF weights, and the dispatch to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput, StandardDispatcher
from sglang.srt.layers.quantization.base_config import (
    FusedMoEMethodBase,
    LinearMethodBase,
    QuantizeMethodBase,
)
from sglang.srt.layers.quantization.gguf import GGUFConfig, is_layer_skipped_gguf
from sglang.srt.layers.quantization.unquant import (
    NPUUnquantMoEMethod,
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.utils import is_npu, use_intel_amx_backend
from torch.nn import Parameter

from ascend_gguf.cpu.experts import apply_experts
from ascend_gguf.cpu.graph import host_call
from ascend_gguf.cpu.linear import BlocksExperts
from ascend_gguf.decoders.dequantize import dequantize
from ascend_gguf.npu.products import ROUTING, this_product
from ascend_gguf.npu.self_check import SelfCheck, experts_mismatch, linear_mismatch
from ascend_gguf.srt.hardware_backend.npu.moe.activation import (
    NPUHalvesSwigluOAI,
    NPUTorchActivation,
)
from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod
from ascend_gguf.srt.layers.activation import of_experts
from ascend_gguf.srt.layers.parameter import (
    make_pending,
    materialize_gguf_weights,
    put_layout,
    remove_weight,
    unpack,
)
from ascend_gguf.srt.layers.quantization.kernels import (
    KERNELS,
    expert_layouts,
    order,
)
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import LinearKernel

if TYPE_CHECKING:
    from sglang.srt.layers.moe.token_dispatcher import CombineInput, DispatchOutput


def get_quant_method(
    original: Callable, self: GGUFConfig, layer: torch.nn.Module, prefix: str
) -> QuantizeMethodBase | None:
    """AROUND ``GGUFConfig.get_quant_method``: the Ascend methods on the devices they serve.

    Layers that ``modules_to_not_convert`` names stay unquantized, whatever their kind.
    """
    for kind, quantized, unquantized in (
        (LinearBase, GGUFLinearAscendMethod, UnquantizedLinearMethod),
        (VocabParallelEmbedding, GGUFEmbeddingAscendMethod, UnquantizedEmbeddingMethod),
        (FusedMoE, GGUFMoEAscendMethod, UnquantizedFusedMoEMethod),
    ):
        if isinstance(layer, kind):
            skipped = is_layer_skipped_gguf(prefix, self.modules_to_not_convert)
            return unquantized() if skipped else quantized(self)
    return None


def ggml_dequantize_ascend(
    qweight: torch.Tensor, qweight_type: int, rows: int, cols: int, dtype: torch.dtype
) -> torch.Tensor:
    """Decode GGUF blocks of any type, as the engine's function of this name does of three.

    Args:
        qweight: uint8, ``rows * cols`` weights as blocks in any shape, on any device.
        qweight_type: id of the block type.
        dtype: float32, float16 or bfloat16.

    Returns:
        ``[rows, cols]`` of ``dtype`` on the device of ``qweight``.

    Raises:
        GGUFError: unknown type, or the bytes are not whole blocks.
        ValueError: the blocks do not hold ``rows * cols`` weights.
    """
    weights = dequantize(qweight.cpu().reshape(-1), qweight_type, dtype)
    if weights.numel() != rows * cols:
        raise ValueError(f"the blocks hold {weights.numel()} weights, not {rows} x {cols}")
    return weights.view(rows, cols).to(qweight.device)


class PackedWeights:
    """What the methods below share: each weight of a layer is packed by itself, or dense."""

    #: The layer's parameters that hold weights.
    weight_names: tuple[str, ...] = ("weight",)

    def create_with(self, create: Callable[..., None], layer: torch.nn.Module, **how: Any) -> None:
        """Create the weights, and remember how."""
        self._create = partial(create, **how)
        self._create(layer)

    def wrap_loader(self, layer: torch.nn.Module, wrap: Callable[[Callable], Callable]) -> None:
        """Load the weights by what ``wrap`` makes of their weight loader, also once more."""
        loader = wrap(self._create.keywords["weight_loader"])
        self._create = partial(self._create, weight_loader=loader)
        self.release_weights(layer)

    def release_weights(self, layer: torch.nn.Module) -> None:
        """Give up the weights, and be ready to load them once more."""
        for name in self.weight_names:
            remove_weight(layer, name)
        self._create(layer)

    def self_check(self, layer: torch.nn.Module, check: SelfCheck) -> None:
        """Check each packed weight, and replace what the device does not multiply with."""
        for name, layout in list(vars(layer).get("gguf_layouts", {}).items()):
            kernel = self._kernel_of(layer, name)
            if kernel is None:
                continue
            mismatch = partial(self._mismatch, kernel)
            settled = check.settled(layout, mismatch, (type(self), type(kernel)))
            if settled is not layout:
                self._use(layer, name, put_layout(layer, name, settled))

    def _kernel_of(self, layer: torch.nn.Module, name: str) -> Any:
        """What multiplies with a packed weight; None if that needs no check."""
        raise NotImplementedError

    def _mismatch(self, kernel: Any, layout: Layout) -> str | None:
        """What is wrong with the weight in a layout: see ``npu.self_check``."""
        raise NotImplementedError

    def _use(self, layer: torch.nn.Module, name: str, layout: Layout | None) -> None:
        """Compute with the weight in another layout; None: with the dense weight that is there."""
        raise NotImplementedError


class GGUFLinearAscendMethod(PackedWeights, LinearMethodBase):
    """A linear layer whose weight comes as GGUF blocks.

    Before loading: ``weight`` ``[out, in]`` of ``params_dtype``, to which blocks are copied.
    After: the tensors of its layout, parameters ``weight_*``, or ``weight`` itself where it is
    dense.
    """

    #: What holds and applies dense weights.
    dense_method: type[QuantizeMethodBase] = UnquantizedLinearMethod

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = self.dense_method()
        self.kernel: LinearKernel | None = None
        #: The weight, once it is loaded; None where it is dense.
        self.weight: Layout | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ):
        sizes = (input_size_per_partition, output_partition_sizes, input_size, output_size)
        attributes = extra_weight_attrs
        self.create_with(self._create_weight, layer, sizes=sizes, dtype=params_dtype, **attributes)

    def role_of(self, layer: torch.nn.Module) -> str:
        """What the weight is for: one of ``KERNELS``."""
        return "linear"

    def _create_weight(
        self, layer: torch.nn.Module, sizes: tuple, dtype: torch.dtype, **attributes: Any
    ) -> None:
        self.weight = None
        role = self.role_of(layer)
        self.kernel = KERNELS[role](self.quant_config, dtype)
        with nullcontext() if self.kernel is None else torch.device("meta"):
            self.dense.create_weights(layer, *sizes, dtype, **attributes)
        if self.kernel is not None:
            layouts = (*self.kernel.layouts, Dense)
            make_pending(layer, "weight", layouts, order(self.quant_config, role, self.kernel))
        _set_bias_dtype(layer, dtype)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        self._use(layer, "weight", materialize_gguf_weights(layer, "weight"))

    def _use(self, layer: torch.nn.Module, name: str, layout: Layout | None) -> None:
        self.weight = layout
        if layout is None:
            _set_bias_dtype(layer, layer.weight.dtype)
            self.dense.process_weights_after_loading(layer)
        elif layout.dtype == torch.bfloat16:
            _set_bias_dtype(layer, torch.float32)  # as the operator takes it

    def _kernel_of(self, layer: torch.nn.Module, name: str) -> LinearKernel | None:
        return self.kernel

    def _mismatch(self, kernel: LinearKernel, layout: Layout) -> str | None:
        return linear_mismatch(kernel, layout, hasattr(self, "embedding"))

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.weight is None:
            return self.dense.apply(layer, x, bias)
        return self.kernel.linear(x, self.weight, bias)


class GGUFEmbeddingAscendMethod(GGUFLinearAscendMethod):
    """As :class:`GGUFLinearAscendMethod`, for the embedding and the output matrix."""

    dense_method = UnquantizedEmbeddingMethod

    def role_of(self, layer: torch.nn.Module) -> str:
        return "output" if isinstance(layer, ParallelLMHead) else "embedding"

    def embedding(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.weight is None:
            return self.dense.embedding(layer, x)
        return self.kernel.rows(self.weight, x)


class GGUFMoEAscendMethod(PackedWeights, FusedMoEMethodBase):
    """Experts whose weights come as GGUF blocks.

    Before loading: ``w13_weight`` ``[experts, 2 * ffn, hidden]`` (gate, then up) and ``w2_weight``
    ``[experts, hidden, ffn]`` of ``params_dtype``, with ``ffn`` this rank's share.  After: of each
    weight the tensors of its layout, as the parameters ``w13_weight_*`` and ``w2_weight_*``, or the
    weight itself where it is dense.

    Gate and up are sharded along their output.  Down is sharded along its *input*, the dimension
    that gate and up produce, so that ranks hold partial sums for the layer's one all-reduce.
    """

    weight_names = ("w13_weight", "w2_weight")

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = UnquantizedFusedMoEMethod()
        #: Packed weights on the host; None elsewhere, and where they are dense.
        self.experts: BlocksExperts | None = None

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ):
        sizes = (num_experts, hidden_size, intermediate_size_per_partition)
        attributes = extra_weight_attrs
        self.create_with(self._create_experts, layer, sizes=sizes, dtype=params_dtype, **attributes)

    def _create_experts(
        self, layer: torch.nn.Module, sizes: tuple, dtype: torch.dtype, **attributes: Any
    ) -> None:
        self.experts = None
        layouts = expert_layouts(self.quant_config, dtype)
        # Biases are no packed layout's affair: they need their memory.
        is_shell = layouts and not attributes.get("with_bias")
        with torch.device("meta") if is_shell else nullcontext():
            self.dense.create_weights(layer, *sizes, dtype, **attributes)
        for name in self.weight_names if layouts else ():
            make_pending(layer, name, (*layouts, Dense), order(self.quant_config, "experts"))

    def release_weights(self, layer: torch.nn.Module) -> None:
        if is_npu():
            for name in self.weight_names:
                setattr(layer, _kernel_name(name), NPUUnquantMoEMethod())
        super().release_weights(layer)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layouts = {name: materialize_gguf_weights(layer, name) for name in self.weight_names}
        for name in self.weight_names:
            _fit_bias(layer, f"{name}_bias")
        if is_npu() and any(layouts.values()):
            for name, layout in layouts.items():
                self._use(layer, name, layout)
            NPUGGUFMoEMethod._set_dispatcher_output_dtype(layer, "bf16")
        elif all(layouts.values()):
            self.experts = BlocksExperts(*layouts.values())
        elif _lacks_routing():
            layer.dispatcher = StandardDispatcher(layer.moe_runner_config)
        else:
            for name, layout in layouts.items():  # on the host both are packed, or neither
                if layout is not None:
                    unpack(layer, name)
            self.dense.process_weights_after_loading(layer)

    def _use(self, layer: torch.nn.Module, name: str, layout: Layout | None) -> None:
        if layout is None:
            kernel = NPUUnquantMoEMethod()
            setattr(layer, _kernel_name(name), kernel)
            kernel.process_weights_after_loading(layer, _prefix(name))
        else:
            kernel = NPUGGUFMoEMethod(layout, getattr(layer, f"{name}_bias", None))
            setattr(layer, _kernel_name(name), kernel)

    def _kernel_of(self, layer: torch.nn.Module, name: str) -> NPUGGUFMoEMethod | None:
        return getattr(layer, _kernel_name(name)) if self.experts is None else None

    def _mismatch(self, kernel: NPUGGUFMoEMethod, layout: Layout) -> str | None:
        return experts_mismatch(NPUGGUFMoEMethod(layout, None).product, layout)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        # The plain runner: ``w2`` is sharded along its input, so its output is a partial sum that
        # the engine's one all-reduce completes.  The engine's own GGUF method asks for two
        # all-gathers besides (``use_tp_all_gather_activation`` and the finalizer "gguf").
        self.dense.create_moe_runner(layer, moe_runner_config)
        self.runner = self.dense.runner
        if is_npu() and moe_runner_config.gemm1_alpha and moe_runner_config.gemm1_clamp_limit:
            self.runner.runner_core.activation = NPUHalvesSwigluOAI(moe_runner_config)
        elif is_npu() and (moe_runner_config.swiglu_limit or not moe_runner_config.is_gated):
            self.runner.runner_core.activation = NPUTorchActivation(of_experts(moe_runner_config))

    def get_moe_runner_backend(self, layer: torch.nn.Module):
        return self.dense.get_moe_runner_backend(layer)

    def apply(self, layer: torch.nn.Module, dispatch_output: DispatchOutput) -> CombineInput:
        is_engines = is_npu() and not _lacks_routing() or use_intel_amx_backend(layer)
        if self.experts is None and is_engines:
            return self.dense.apply(layer, dispatch_output)
        config = layer.moe_runner_config
        topk_weights, topk_ids, _ = dispatch_output.topk_output
        inputs = dispatch_output.hidden_states, topk_weights, topk_ids
        options = {
            "activation": of_experts(config),
            "w13_bias": getattr(layer, "w13_weight_bias", None),
            "w2_bias": getattr(layer, "w2_weight_bias", None),
            "weight_on_input": config.apply_router_weight_on_input,
        }
        if self.experts is not None:
            hidden_states = self.experts(*inputs, **options)
        else:
            dense = partial(apply_experts, w13=layer.w13_weight, w2=layer.w2_weight, **options)
            hidden_states = host_call(
                lambda x, weights, ids: dense(x, topk_weights=weights, topk_ids=ids), *inputs
            )
        return StandardCombineInput(hidden_states=hidden_states)


def _lacks_routing() -> bool:
    """Whether experts are computed by torch's operators, as on the host, on an NPU."""
    return is_npu() and ROUTING in this_product().lacks


def _prefix(weight_name: str) -> str:
    return weight_name.removesuffix("_weight")


def _kernel_name(weight_name: str) -> str:
    """Where the engine keeps what multiplies with a weight of experts on an NPU."""
    return f"{_prefix(weight_name)}_kernel"


def _set_bias_dtype(layer: torch.nn.Module, dtype: torch.dtype) -> None:
    if getattr(layer, "bias", None) is not None:
        bias = Parameter(layer.bias.to(dtype), requires_grad=False)
        vars(bias).update(vars(layer.bias))  # its weight loader among them
        layer.bias = bias


def _fit_bias(layer: torch.nn.Module, name: str) -> None:
    """Halve a bias of experts where an NPU's products are in float16: they add no float32 there."""
    bias = getattr(layer, name, None)
    if bias is not None and is_npu() and layer.params_dtype == torch.float16:
        setattr(layer, name, Parameter(bias.half(), requires_grad=False))
