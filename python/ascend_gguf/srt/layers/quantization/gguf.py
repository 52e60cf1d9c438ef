"""Linear, embedding and MoE methods for GGUF weights, and the dispatch to them."""

from __future__ import annotations

from collections.abc import Callable
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
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.utils import is_npu, use_intel_amx_backend

from ascend_gguf.decoding import dequantize
from ascend_gguf.kernels.experts import ACTIVATIONS, apply_experts, swiglu_oai
from ascend_gguf.srt.device import uses_ascend_methods
from ascend_gguf.srt.layers.parameter import (
    accept_blocks,
    register_block_parameters,
    stop_accepting_blocks,
)

if TYPE_CHECKING:
    from sglang.srt.layers.moe.token_dispatcher import CombineInput, DispatchOutput


def get_quant_method(
    original: Callable, self: GGUFConfig, layer: torch.nn.Module, prefix: str
) -> QuantizeMethodBase | None:
    """AROUND ``GGUFConfig.get_quant_method``: the Ascend methods on the devices they serve.

    Layers that ``modules_to_not_convert`` names stay unquantized, whatever their kind.
    """
    if not uses_ascend_methods():
        return original(self, layer, prefix)
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
    """A linear layer whose weight comes as GGUF blocks and is held as numbers.

    Before loading: ``weight`` ``[out, in]`` of ``params_dtype``, and the empty ``qweight`` and
    ``qweight_type`` that receive blocks for it.  After: ``weight`` alone.
    """

    #: What holds and applies the numbers.
    dense_method: type[QuantizeMethodBase] = UnquantizedLinearMethod

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = self.dense_method()

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
        self.dense.create_weights(
            layer,
            input_size_per_partition,
            output_partition_sizes,
            input_size,
            output_size,
            params_dtype,
            **extra_weight_attrs,
        )
        accept_blocks(layer)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        stop_accepting_blocks(layer)
        self.dense.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.dense.apply(layer, x, bias)


class GGUFEmbeddingAscendMethod(GGUFLinearAscendMethod):
    """As :class:`GGUFLinearAscendMethod`, for the embedding and the output matrix."""

    dense_method = UnquantizedEmbeddingMethod

    def embedding(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.dense.embedding(layer, x)


class GGUFMoEAscendMethod(FusedMoEMethodBase):
    """Experts whose weights come as GGUF blocks and are held as numbers.

    Before loading: ``w13_weight`` ``[experts, 2 * ffn, hidden]`` (gate, then up) and ``w2_weight``
    ``[experts, hidden, ffn]`` of ``params_dtype``, with ``ffn`` this rank's share, and the empty
    ``*_qweight`` and ``*_qweight_type`` that receive blocks for them.  After: the weights alone.
    """

    weight_names = ("w13_weight", "w2_weight")

    def __init__(self, quant_config: GGUFConfig):
        self.quant_config = quant_config
        self.dense = UnquantizedFusedMoEMethod()
        #: Block type of each (local expert, shard) that comes as blocks.
        self.types: dict[tuple[int, str], int] = {}
        #: The (local expert, shard) pairs whose numbers are in place.
        self.loaded: set[tuple[int, str]] = set()

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs,
    ):
        self.dense.create_weights(
            layer,
            num_experts,
            hidden_size,
            intermediate_size_per_partition,
            params_dtype,
            **extra_weight_attrs,
        )
        for name in self.weight_names:
            # The layer's own loader: it keeps this rank's experts, then calls _load_gguf_weight.
            register_block_parameters(layer, name, layer.weight_loader, layer.weight_loader)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.materialize_gguf_weights()
        for name in self.weight_names:
            stop_accepting_blocks(layer, name)
        self.dense.process_weights_after_loading(layer)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        # The plain runner: ``w2`` is cut along its input, so its output is a partial sum that the
        # engine's one all-reduce completes.  The engine's own GGUF method asks for two all-gathers
        # besides (``use_tp_all_gather_activation`` and the dispatcher's "gguf" finalizer).
        self.dense.create_moe_runner(layer, moe_runner_config)
        self.runner = self.dense.runner

    def get_moe_runner_backend(self, layer: torch.nn.Module):
        return self.dense.get_moe_runner_backend(layer)

    def apply(self, layer: torch.nn.Module, dispatch_output: DispatchOutput) -> CombineInput:
        if is_npu() or use_intel_amx_backend(layer):
            return self.dense.apply(layer, dispatch_output)
        config = layer.moe_runner_config
        topk_weights, topk_ids, _ = dispatch_output.topk_output
        hidden_states = apply_experts(
            dispatch_output.hidden_states,
            layer.w13_weight,
            layer.w2_weight,
            topk_weights,
            topk_ids,
            _activation(config),
            w13_bias=getattr(layer, "w13_weight_bias", None),
            w2_bias=getattr(layer, "w2_weight_bias", None),
            weight_on_input=config.apply_router_weight_on_input,
        )
        return StandardCombineInput(hidden_states=hidden_states)


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
