"""Decode steps on the CPU, captured once for each batch size and replayed."""

from __future__ import annotations

import dataclasses
import logging

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.hybrid_linear_attn_backend import (
    HybridLinearAttnBackend,
    Mamba2AttnBackend,
    ShortConvHybridAttnBackend,
)
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend
from sglang.srt.layers.attention.linear.kda_backend import KDAAttnBackend
from sglang.srt.layers.attention.linear.short_conv_backend import ShortConvAttnBackend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
    PPProxyTensors,
)
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import (
    get_exec,
    get_flags,
    get_lora,
    get_observability,
    get_parallel,
)

from ascend_gguf.cpu.graph import Graph, NotCapturable, capture

logger = logging.getLogger(__name__)

_KNOWN = (
    *(TorchNativeAttnBackend, GDNAttnBackend, KDAAttnBackend),
    *(Mamba2AttnBackend, ShortConvAttnBackend),
)

#: Memory that the graphs of a model may take; steps of further batch sizes are the engine's.
MOST_BYTES = 1 << 29

# What a step's result depends on, copied to where the graph reads it.
_INPUTS = ("input_ids", "positions", "seq_lens", "req_pool_indices", "out_cache_loc")
# What a decode step does not read: copies on the host, what is for sampling, a prompt's rest.
_UNSEEN = frozenset((
    "forward_mode", "batch_size", "spec_algorithm", "kv_loc_plan", "out_cache_loc_is_physical",
    "seq_lens_cpu", "seq_lens_sum", "orig_seq_lens", "max_seq_len_host",
    "global_num_token_non_padded_cpu", "contains_last_prefill_chunk", "rids",
    "sampling_info", "return_logprob", "top_logprobs_nums", "token_ids_logprobs",
    "temperature", "top_p", "extend_input_logprob_token_ids_gpu",
))  # fmt: skip
# The others must be absent: one a request, or at all.
_LISTS = frozenset(("mm_inputs", "lora_ids"))
_ABSENT = {
    field.name: field.default
    for field in dataclasses.fields(ForwardBatch)
    if field.name not in _UNSEEN.union(_INPUTS, _LISTS, ("capture_hidden_mode",))
}


class GGUFGraphRunner:
    """The engine's decode graph runner for a GGUF model on the CPU.

    The first step of a batch size is the engine's, the second is captured, the third is done both
    ways: a model whose replay differs in a single bit is not replayed.  Batches are not padded.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        self.capture_bs: list[int] = []
        self._model_runner = model_runner
        self._steps: dict[int, _Step | None] = {}
        self._is_given_up = False

    @staticmethod
    def serves(model_runner: ModelRunner) -> bool:
        """Whether the model's steps are of the kind that can be captured."""
        parallel = get_parallel()
        return (
            model_runner.device == "cpu"
            and model_runner.model_config.quantization == "gguf"
            and model_runner.is_generation
            and model_runner.spec_algorithm.is_none()
            and not model_runner.is_draft_worker
            and not model_runner.model_config.is_encoder_decoder
            and _is_known(model_runner.attn_backend)
            and not _looks_at_batches(model_runner.model)
            and not get_exec().graph.disable_decode_cuda_graph
            and not get_flags().capture.enable_torch_compile
            and not get_lora().enable_lora
            and not get_observability().forward_hooks
            and parallel.tp_size == parallel.pp_size == parallel.dp_size == 1
        )

    def can_run_graph(self, batch: ForwardBatch) -> bool:
        """Whether :meth:`execute` does the step."""
        if self._is_given_up or not _is_plain(batch):
            return False
        if batch.batch_size not in self._steps:
            self._steps[batch.batch_size] = None
            return False
        step = self._steps[batch.batch_size]
        return step is not None or self._used_bytes() < MOST_BYTES

    def execute(
        self, batch: ForwardBatch, pp_proxy_tensors: PPProxyTensors | None = None
    ) -> LogitsProcessorOutput:
        """A decode step."""
        assert pp_proxy_tensors is None
        step = self._steps[batch.batch_size]
        if step is None:
            step = _Step(self._model_runner, batch.batch_size)
            self._steps[batch.batch_size] = step
            self.capture_bs.append(batch.batch_size)
        try:
            return step.run(batch)
        except Exception as error:  # whatever is wrong with capturing, the engine can do the step
            logger.info("No CPU decode graph: %s", error or type(error).__name__)
            self._is_given_up = True
            self._steps.clear()
            self._model_runner._prepare_eager_forward_batch(batch)
            return self._model_runner.eager_runner.execute(batch)

    def _used_bytes(self) -> int:
        return sum(step.graph.nbytes for step in self._steps.values() if step and step.graph)


class _Step:
    """Decode steps of one batch size."""

    def __init__(self, model_runner: ModelRunner, size: int) -> None:
        self._model_runner = model_runner
        inputs = {name: torch.zeros(size, dtype=torch.int64) for name in _INPUTS}
        self._batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=size,
            seq_lens_sum=None,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            spec_algorithm=model_runner.spec_algorithm,
            **inputs,
        )
        self._inputs = tuple(inputs.items())
        self.graph: Graph | None = None
        self._output: LogitsProcessorOutput | None = None
        self._is_proven = False

    def run(self, batch: ForwardBatch) -> LogitsProcessorOutput:
        """Raises NotCapturable, or what the model raises, if its steps cannot be replayed."""
        for name, target in self._inputs:
            target.copy_(getattr(batch, name))
        if self.graph is None:
            self._model_runner.kv_index_translator.bind_runner_slots(self._batch)
            self.graph, self._output = capture(self.forward)
        elif self._is_proven:
            self.graph.replay()
        else:
            states = _states(self._model_runner, batch)
            before = [(pool, slots, pool[:, slots]) for pool, slots in states]
            expected = self.forward().next_token_logits
            for pool, slots, kept in before:
                pool[:, slots] = kept
            self.graph.replay()
            if not torch.equal(expected, self._output.next_token_logits):
                raise NotCapturable("a replay gave other numbers")
            logger.info("CPU decode graph active for batch size %d", self._batch.batch_size)
            self._is_proven = True
        return dataclasses.replace(self._output)

    def forward(self) -> LogitsProcessorOutput:
        """The model's own way, on the inputs that are in place."""
        batch, runner = self._batch, self._model_runner
        runner.attn_backend.init_forward_metadata(batch)
        return runner.model.forward(batch.input_ids, batch.positions, batch)


def _looks_at_batches(model: torch.nn.Module) -> bool:
    """Whether a model does so before each step; Nemotron-H has an option for that, of CUDA."""
    methods = ("prepare_for_forward", "prepare_forward_batch")
    return any(hasattr(model, name) for name in methods) and getattr(
        model, "_use_nvfp4_phase_layout", True
    )


def _is_known(backend: AttentionBackend) -> bool:
    """Whether attention, linear attention beside it included, is of the kind that is captured."""
    if type(backend) in (HybridLinearAttnBackend, ShortConvHybridAttnBackend):
        return _is_known(backend.full_attn_backend) and _is_known(backend.linear_attn_backend)
    return isinstance(backend, _KNOWN)


def _states(
    model_runner: ModelRunner, batch: ForwardBatch
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What a step changes, not only adds to: ``[layers, slots, ...]``, and the requests' slots."""
    requests = model_runner.req_to_token_pool
    if not isinstance(requests, HybridReqToTokenPool):
        return []
    slots = requests.get_mamba_indices(batch.req_pool_indices)
    slots = requests.translate_mamba_indices(slots).long()
    cache = requests.mamba_pool.mamba_cache
    return [(pool, slots) for pool in (*cache.conv, cache.temporal)]


def _is_plain(batch: ForwardBatch) -> bool:
    """Whether a batch has nothing that a captured step would not be told of."""
    return (
        batch.capture_hidden_mode == CaptureHiddenMode.NULL
        and all(getattr(batch, name) is default for name, default in _ABSENT.items())
        and not any(any(getattr(batch, name) or ()) for name in _LISTS)
    )
