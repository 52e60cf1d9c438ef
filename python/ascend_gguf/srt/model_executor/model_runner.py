"""The model runner of a GGUF model: memory and decode graphs on the CPU, rows without a token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import AttentionArch, ModelConfig
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_schedule, get_spec
from sglang.srt.utils import is_npu

from ascend_gguf.cpu.sampling import finite_rows
from ascend_gguf.memory.lazy_zeros import LazyZeros
from ascend_gguf.srt.device import serves_gguf
from ascend_gguf.srt.lora.lora_manager import check_adapters, leave_out_experts, one_error
from ascend_gguf.srt.model_executor.cpu_graph_runner import GGUFGraphRunner
from ascend_gguf.srt.model_executor.layer_sizes import (
    give_layers_their_sizes,
    has_layer_sizes,
    join_latents,
    mean_sizes,
)
from ascend_gguf.srt.not_finite import NO_TOKEN, computes_in
from ascend_gguf.srt.overrides import override

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

#: Classes that attend by another operator on Ascend, of the engine's ``NPUGraphRunner``.
_TOLD_OTHERWISE = {"MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "Step3p5ForCausalLM"}


def __init__(
    original: Callable, self: ModelRunner, model_config: ModelConfig, *args: Any, **kwargs: Any
) -> None:
    """AROUND ``ModelRunner.__init__``: the runner of a GGUF model and its parts are ours."""
    is_gguf = model_config.quantization == "gguf"
    if is_gguf:
        join_latents(model_config)
        if is_npu() and model_config.attention_arch == AttentionArch.SSM:
            # For which the engine has a backend of Triton kernels, and on an NPU no graphs.
            model_config.attention_arch = AttentionArch.MHA
        override(self)
    original(self, model_config, *args, **kwargs)
    if is_gguf:
        override(self.sampler)
        override(self.weight_exporter)
    if serves_gguf():  # also for a draft model of another format
        override(self.weight_updater)


def init_lora_manager(original: Callable, self: ModelRunner) -> None:
    """Overrides ``ModelRunner.init_lora_manager``: an adapter is not GGUF where the model is.

    The engine reads adapters in the model's own format, and knows no such adapters in GGUF.
    """
    load_config = self.load_config
    self.load_config = LoadConfig(download_dir=load_config.download_dir)
    leave_out_experts(self.model)
    try:
        with one_error(self.model_config.model_path):
            original(self)
            check_adapters(self.lora_manager)
    finally:
        self.load_config = load_config


def replay_decode_steps(original: Callable, self: ModelRunner, *args: Any, **kwargs: Any) -> None:
    """Overrides ``init_cuda_graphs`` and ``init_decode_cuda_graph``.

    The engine has a graph for the CPU only of what ``torch.compile`` makes.  That for an NPU tells
    lengths by an argument of another operator to some classes, which on the engine's own backend
    attend by it; here they attend as others do.
    """
    config = self.model_config.hf_config
    kept = config.architectures
    if _TOLD_OTHERWISE & {*kept}:
        config.architectures = ["LlamaForCausalLM"]
    try:
        original(self, *args, **kwargs)
    finally:
        config.architectures = kept
    if self.decode_cuda_graph_runner is None and GGUFGraphRunner.serves(self):
        self.decode_cuda_graph_runner = GGUFGraphRunner(self)
        self.decode_cuda_graph_captured = True


def alloc_memory_pool(original: Callable, self: ModelRunner, *args: Any, **kwargs: Any) -> None:
    """Overrides ``ModelRunner.alloc_memory_pool``: the cache takes memory as requests fill it.

    The engine gives the cache most of a machine's memory, and on the CPU writes zeros into all of
    it before the first request: a second for each gigabyte.
    """
    with LazyZeros() if self.device == "cpu" else nullcontext():
        config = self.model_config.hf_config
        if not has_layer_sizes(config):
            return original(self, *args, **kwargs)
        layers = range(self.layer_info.start_layer, self.layer_info.end_layer)
        with mean_sizes(self.model_config, config, layers):
            original(self, *args, **kwargs)
        give_layers_their_sizes(self.token_to_kv_pool, config)


def sample(
    original: Callable,
    self: ModelRunner,
    logits_output: LogitsProcessorOutput,
    forward_batch: ForwardBatch,
) -> torch.Tensor:
    """Overrides ``ModelRunner.sample``: a row of logits that are not all finite has no token.

    Returns :data:`NO_TOKEN` for it, which ends its request
    (:mod:`ascend_gguf.srt.managers.schedule_batch`).  Where the next step, or a draft, begins
    before this one's result is looked at, it gets what was drawn, and the result's copy for the
    host is marked (:mod:`ascend_gguf.srt.managers.utils`): an accelerator is not waited for.
    """
    logits = logits_output.next_token_logits
    finite = finite_rows(logits)
    if logits.device.type == "cpu" and bool(finite.all()):
        return original(self, logits_output, forward_batch)
    computes_in(self.model_config.dtype)
    # Operators that draw are not made for NaN: one that stops the process stops everybody's.
    logits.masked_fill_(~finite.unsqueeze(-1), 0.0)
    drawn = original(self, logits_output, forward_batch)
    if get_schedule().disable_overlap_schedule and not get_spec().speculative_algorithm:
        return drawn.masked_fill(~finite, NO_TOKEN)
    logits_output.without_token = ~finite.unsqueeze(-1)
    return drawn
