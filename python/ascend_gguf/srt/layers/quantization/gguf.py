"""Linear, embedding and MoE methods for GGUF weights, and the dispatch to them."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
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
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.utils import is_npu, use_intel_amx_backend
from torch.nn import Parameter

from ascend_gguf.cpu.experts import ACTIVATIONS, apply_experts, swiglu_oai
from ascend_gguf.cpu.graph import host_call
from ascend_gguf.cpu.linear import BlocksExperts, BlocksLinear
from ascend_gguf.decoders.dequantize import dequantize
from ascend_gguf.npu.experts import GroupedInt4, GroupedNibblePlanes
from ascend_gguf.npu.linear import NPUExactLinear, NPULinear, has_operators
from ascend_gguf.npu.self_check import experts_mismatch, linear_mismatch, shape_class
from ascend_gguf.srt.hardware_backend.npu.moe.activation import NPUHalvesSwigluOAI
from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod
from ascend_gguf.srt.layers.moe.fused_moe_triton.layer import check_experts
from ascend_gguf.srt.layers.parameter import (
    accept_blocks,
    finalize,
    make_pending,
    register_block_parameters,
    remove_weight,
    stop_accepting_blocks,
    unpack,
)
from ascend_gguf.srt.overrides import override
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


@dataclass(frozen=True)
class Choice:
    """How a model's weights are held: the loader's options, and what the file suggests.

    Attributes:
        weights: ``auto``, ``packed`` or ``dense``.
        nearly: whether a linear layer may hold types with a scale for 16 weights nearly exactly,
            for one operator less.
    """

    weights: str = "auto"
    nearly: bool = False


def linear_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """What multiplies with packed weights on this device; None: weights become numbers."""
    if not is_npu():
        return BlocksLinear() if _packs(quant_config) else None
    if not _packs_on_npu(quant_config, dtype):
        return None
    return NPULinear() if choice_of(quant_config).nearly else NPUExactLinear()


def embedding_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """As :func:`linear_kernel`, for the embedding and the output matrix.

    The error of an output matrix is all in the logits, and it is one product of many: always exact,
    and on the host not rounded either.
    """
    if not is_npu():
        return BlocksLinear(torch.float32) if _packs(quant_config) else None
    return NPUExactLinear() if _packs_on_npu(quant_config, dtype) else None


def expert_layouts(quant_config: GGUFConfig, dtype: torch.dtype) -> tuple[type[Layout], ...]:
    """The packed layouts of experts on this device, narrowest first; none: they become numbers."""
    if is_npu():
        return (GroupedInt4, GroupedNibblePlanes) if _packs_on_npu(quant_config, dtype) else ()
    return BlocksExperts.layouts if _packs(quant_config) else ()


def _packs_on_npu(quant_config: GGUFConfig, dtype: torch.dtype) -> bool:
    has_dtype = dtype in (torch.float16, torch.bfloat16)
    return _packs(quant_config) and has_dtype and has_operators()


def _packs(quant_config: GGUFConfig) -> bool:
    return choice_of(quant_config).weights != "dense"


def choice_of(quant_config: GGUFConfig) -> Choice:
    """What the loader chose for the model whose configuration this is."""
    return getattr(quant_config, "choice", Choice())


def ggml_dequantize_ascend(
    qweight: torch.Tensor,
    qweight_type: int,
    rows: int,
    cols: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Decode GGUF blocks of any type.

    Args:
        qweight: uint8, ``rows * cols`` weights as blocks in any shape, on any device.
        qweight_type: id of the block type.
        rows, cols: shape of the result.
        dtype: dtype of the result: float32, float16 or bfloat16.

    Returns:
        ``[rows, cols]`` of ``dtype`` on the device of ``qweight``.

    Raises:
        GGUFError: unknown type, or the bytes are not whole blocks.
        ValueError: the blocks do not hold ``rows * cols`` weights.
    """
    numbers = dequantize(qweight.cpu().reshape(-1), qweight_type, dtype)
    if numbers.numel() != rows * cols:
        raise ValueError(f"the blocks hold {numbers.numel()} weights, not {rows} x {cols}")
    return numbers.view(rows, cols).to(qweight.device)


class GGUFLinearAscendMethod(LinearMethodBase):
    """A linear layer whose weight comes as GGUF blocks.

    Before loading: ``weight`` ``[out, in]`` of ``params_dtype``, and the empty ``qweight`` and
    ``qweight_type`` that receive blocks for it.  After: the tensors of its layout, parameters
    ``weight_*``, or ``weight`` itself where it is held as numbers.
    """

    #: What holds and applies numbers.
    dense_method: type[QuantizeMethodBase] = UnquantizedLinearMethod
    #: What multiplies with packed layouts.
    kernel_of = staticmethod(linear_kernel)

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = self.dense_method()
        self.kernel: LinearKernel | None = None
        #: The weight, once it is loaded; None where it is held as numbers.
        self.weight: Layout | None = None
        #: Creates the weights of a layer, once more.
        self._create: Callable[[torch.nn.Module], None] | None = None

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
        self._create = partial(
            self._create_weight, sizes=sizes, dtype=params_dtype, attributes=extra_weight_attrs
        )
        self._create(layer)

    def _create_weight(
        self, layer: torch.nn.Module, sizes: tuple, dtype: torch.dtype, attributes: dict
    ) -> None:
        self.kernel = type(self).kernel_of(self.quant_config, dtype)
        with nullcontext() if self.kernel is None else torch.device("meta"):
            self.dense.create_weights(layer, *sizes, dtype, **attributes)
        if self.kernel is not None:
            make_pending(layer, "weight", (*self.kernel.layouts, Dense))
        accept_blocks(layer)
        if getattr(layer, "bias", None) is not None:
            _set_bias_dtype(layer, dtype)

    def wrap_loader(self, layer: torch.nn.Module, wrap: Callable[[Callable], Callable]) -> None:
        """Load the weight by what ``wrap`` makes of its weight loader, also when it comes anew."""
        attributes = dict(self._create.keywords["attributes"])
        attributes["weight_loader"] = wrap(attributes["weight_loader"])
        self._create = partial(self._create, attributes=attributes)
        self.give_up_weights(layer)

    def give_up_weights(self, layer: torch.nn.Module) -> None:
        """Give up the weight, and be ready to load it once more."""
        self.weight = None
        remove_weight(layer, "weight")
        self._create(layer)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        stop_accepting_blocks(layer)
        self.weight = finalize(layer, "weight")
        if self.weight is None:
            self.dense.process_weights_after_loading(layer)
            return
        bias = getattr(layer, "bias", None)
        if bias is not None and bias.dtype == torch.bfloat16:  # as the operator takes it
            _set_bias_dtype(layer, torch.float32)

    def mismatches(self, layer: torch.nn.Module) -> Iterator[tuple[Hashable, Callable]]:
        """For each packed weight its shape class, and what checks it: see ``npu.self_check``."""
        if self.weight is not None:
            check = partial(linear_mismatch, self.kernel, self.weight, hasattr(self, "embedding"))
            yield shape_class(self.kernel, self.weight), check

    def use_numbers(self, layer: torch.nn.Module, shape_classes: Container[Hashable]) -> None:
        """Give up the packed layout if the weight is of one of these classes."""
        if self.weight is None or shape_class(self.kernel, self.weight) not in shape_classes:
            return
        dtype, self.weight = self.weight.dtype, None
        unpack(layer, "weight")
        if getattr(layer, "bias", None) is not None:
            _set_bias_dtype(layer, dtype)
        self.dense.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.weight is None:
            return self.dense.apply(layer, x, bias)
        return self.kernel.linear(x, self.weight, bias)


class GGUFEmbeddingAscendMethod(GGUFLinearAscendMethod):
    """As :class:`GGUFLinearAscendMethod`, for the embedding and the output matrix."""

    dense_method = UnquantizedEmbeddingMethod
    kernel_of = staticmethod(embedding_kernel)

    def embedding(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.weight is None:
            return self.dense.embedding(layer, x)
        return self.kernel.rows(self.weight, x)


class GGUFMoEAscendMethod(FusedMoEMethodBase):
    """Experts whose weights come as GGUF blocks.

    Before loading: ``w13_weight`` ``[experts, 2 * ffn, hidden]`` (gate, then up) and ``w2_weight``
    ``[experts, hidden, ffn]`` of ``params_dtype``, with ``ffn`` this rank's share, and the empty
    ``*_qweight`` and ``*_qweight_type`` that receive blocks for them.  After: of each weight the
    tensors of its layout, as the parameters ``w13_weight_*`` and ``w2_weight_*``, or the weight
    itself where it is held as numbers.
    """

    weight_names = ("w13_weight", "w2_weight")

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = UnquantizedFusedMoEMethod()
        #: Block type of each (local expert, shard) that comes as blocks.
        self.types: dict[tuple[int, str], int] = {}
        #: The (local expert, shard) pairs whose numbers are in place.
        self.loaded: set[tuple[int, str]] = set()
        #: Packed weights on the host; None elsewhere, and where they are held as numbers.
        self.experts: BlocksExperts | None = None
        self._create: Callable[[torch.nn.Module], None] | None = None

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
        override(layer)
        self._create = partial(
            self._create_experts, sizes=sizes, dtype=params_dtype, attributes=extra_weight_attrs
        )
        self._create(layer)

    def _create_experts(
        self, layer: torch.nn.Module, sizes: tuple, dtype: torch.dtype, attributes: dict
    ) -> None:
        layouts = expert_layouts(self.quant_config, dtype)
        # Biases are no packed layout's affair: they need their memory.
        is_shell = layouts and not attributes.get("with_bias")
        with torch.device("meta") if is_shell else nullcontext():
            self.dense.create_weights(layer, *sizes, dtype, **attributes)
        for name in self.weight_names:
            if layouts:
                make_pending(layer, name, (*layouts, Dense))
            # The layer's own loader: it keeps this rank's experts, then calls _load_gguf_weight.
            register_block_parameters(layer, name, layer.weight_loader, layer.weight_loader)

    def give_up_weights(self, layer: torch.nn.Module) -> None:
        """As of :class:`GGUFLinearAscendMethod`."""
        self.types.clear()
        self.loaded.clear()
        self.experts = None
        for name in self.weight_names:
            remove_weight(layer, name)
            if is_npu():
                setattr(layer, f"{name.removesuffix('_weight')}_kernel", NPUUnquantMoEMethod())
        self._create(layer)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        check_experts(layer)
        layouts = {}
        for name in self.weight_names:
            stop_accepting_blocks(layer, name)
            layouts[name] = finalize(layer, name)
            _fit_bias(layer, f"{name}_bias")
        if not is_npu() and None in layouts.values():  # both are packed, or neither
            for name in [name for name, layout in layouts.items() if layout is not None]:
                unpack(layer, name)
                layouts[name] = None
        if not any(layouts.values()):
            self.dense.process_weights_after_loading(layer)
            return
        if not is_npu():
            self.experts = BlocksExperts(*layouts.values())
            return
        for name, layout in layouts.items():
            prefix = name.removesuffix("_weight")
            if layout is None:
                kernel = getattr(layer, f"{prefix}_kernel")
                kernel.process_weights_after_loading(layer, prefix)
            else:
                kernel = NPUGGUFMoEMethod(layout, getattr(layer, f"{name}_bias", None))
                setattr(layer, f"{prefix}_kernel", kernel)
        NPUGGUFMoEMethod._set_dispatcher_output_dtype(layer, "bf16")

    def mismatches(self, layer: torch.nn.Module) -> Iterator[tuple[Hashable, Callable]]:
        """As of :class:`GGUFLinearAscendMethod`; nothing on the host."""
        if self.experts is not None:
            return
        for name, layout in getattr(layer, "gguf_layouts", {}).items():
            kernel = getattr(layer, f"{name.removesuffix('_weight')}_kernel")
            yield shape_class(kernel, layout), partial(experts_mismatch, kernel.product, layout)

    def use_numbers(self, layer: torch.nn.Module, shape_classes: Container[Hashable]) -> None:
        """As of :class:`GGUFLinearAscendMethod`."""
        if self.experts is not None:
            return
        for name, layout in list(getattr(layer, "gguf_layouts", {}).items()):
            prefix = name.removesuffix("_weight")
            if shape_class(getattr(layer, f"{prefix}_kernel"), layout) in shape_classes:
                unpack(layer, name)
                kernel = NPUUnquantMoEMethod()
                setattr(layer, f"{prefix}_kernel", kernel)
                kernel.process_weights_after_loading(layer, prefix)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        # The plain runner: ``w2`` is cut along its input, so its output is a partial sum that the
        # engine's one all-reduce completes.  The engine's own GGUF method asks for two all-gathers
        # besides (``use_tp_all_gather_activation`` and the dispatcher's "gguf" finalizer).
        self.dense.create_moe_runner(layer, moe_runner_config)
        self.runner = self.dense.runner
        if moe_runner_config.activation == "npu_swiglu_oai":
            self.runner.runner_core.activation = NPUHalvesSwigluOAI(moe_runner_config)

    def get_moe_runner_backend(self, layer: torch.nn.Module):
        return self.dense.get_moe_runner_backend(layer)

    def apply(self, layer: torch.nn.Module, dispatch_output: DispatchOutput) -> CombineInput:
        if self.experts is None and (is_npu() or use_intel_amx_backend(layer)):
            return self.dense.apply(layer, dispatch_output)
        config = layer.moe_runner_config
        topk_weights, topk_ids, _ = dispatch_output.topk_output
        apply = self.experts
        if apply is None:
            apply = partial(apply_experts, w13=layer.w13_weight, w2=layer.w2_weight)
        apply = partial(
            apply,
            activation=_activation(config),
            w13_bias=getattr(layer, "w13_weight_bias", None),
            w2_bias=getattr(layer, "w2_weight_bias", None),
            weight_on_input=config.apply_router_weight_on_input,
        )
        # Which experts a token has says which products there are.
        hidden_states = host_call(
            lambda x, weights, ids: apply(x, topk_weights=weights, topk_ids=ids),
            *(dispatch_output.hidden_states, topk_weights, topk_ids),
        )
        return StandardCombineInput(hidden_states=hidden_states)


def _set_bias_dtype(layer: torch.nn.Module, dtype: torch.dtype) -> None:
    bias = Parameter(layer.bias.to(dtype), requires_grad=False)
    vars(bias).update(vars(layer.bias))  # its weight loader among them
    layer.bias = bias


def _fit_bias(layer: torch.nn.Module, name: str) -> None:
    """Halve a bias of experts where an NPU's products are in float16: they add no float32 there."""
    bias = getattr(layer, name, None)
    if bias is not None and is_npu() and layer.params_dtype == torch.float16:
        setattr(layer, name, Parameter(bias.half(), requires_grad=False))


def _activation(config: MoeRunnerConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    plain = config.is_gated and config.gemm1_alpha is None and not config.swiglu_limit
    if config.is_gated and config.gemm1_alpha and config.gemm1_clamp_limit:
        return swiglu_oai(config.gemm1_alpha, config.gemm1_clamp_limit)
    if plain and config.activation in ACTIVATIONS:
        return ACTIVATIONS[config.activation]
    raise NotImplementedError(
        f"experts with activation {config.activation!r} (gated: {config.is_gated}, alpha: "
        f"{config.gemm1_alpha}, limit: {config.swiglu_limit}) are not supported on the CPU"
    )
