"""Methods of the engine's objects that serve a GGUF model: a subclass for them, not for others.

The engine's classes stay as they are.  An object that serves a GGUF model gets a subclass of its
class, in which each overridden method calls ours with the engine's first, as an AROUND hook is
called: ``hook(original, self, ...)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import FunctionType
from typing import Any

from sglang.srt.utils import is_npu

from ascend_gguf.srt import fingerprints

_PATCH = "ascend_gguf.srt"
_ENGINE = "sglang.srt"

_RUNNER = "model_executor.model_runner_components"
_SCHEDULER = "managers.scheduler_components"

#: Module and class, below ``sglang.srt``, to its methods that are overridden.  Ours are in the same
#: module below ``ascend_gguf.srt``, of the same name or the one behind ``=``.
_METHODS = {
    "entrypoints.ollama.serving.OllamaServing": (
        "_convert_options_to_sampling_params "
        "_stream_chat_response=stream_whole _stream_generate_response=stream_whole"
    ),
    "entrypoints.openai.serving_base.OpenAIServingBase": "create_error_response",
    "entrypoints.openai.serving_chat.OpenAIServingChat": "_process_messages",
    "entrypoints.openai.serving_rerank.OpenAIServingRerank": "_handle_non_streaming_request",
    "layers.activation.SiluAndMul": "forward_native=silu_and_mul",
    "layers.activation.GeluAndMul": "forward_native=gelu_and_mul",
    "layers.attention.torch_native_backend.TorchNativeAttnBackend": (
        "forward_extend forward_decode _run_sdpa_forward_extend _run_sdpa_forward_decode"
    ),
    "layers.layernorm.RMSNorm": "forward_native",
    "layers.layernorm.GemmaRMSNorm": "forward_native=gemma_norm",
    "layers.layernorm.Gemma3RMSNorm": "forward_native=gemma_norm",
    "layers.moe.token_dispatcher.ascend_tp.AscendTPDispatcher": (
        "set_ascend_dispatcher_output_dtype"
    ),
    "layers.moe.topk.TopK": "forward_native forward_npu",
    "layers.rotary_embedding.base.RotaryEmbedding": "forward_native",
    "layers.sampler.Sampler": "_sample_from_logits _sample_from_probs",
    "managers.schedule_batch.Req": "_check_str_based_finish _check_vocab_boundary_finish",
    "managers.scheduler.Scheduler": (
        "_add_request_to_queue init_batch_result_processor init_profiler init_request_dispatcher "
        "init_weight_updater"
    ),
    f"{_SCHEDULER}.batch_result_processor.SchedulerBatchResultProcessor": (
        "process_batch_result_prefill"
    ),
    f"{_SCHEDULER}.profiler_manager.SchedulerProfilerManager": (
        "_profile=ended_by_an_error _profile_batch_predicate=ended_by_an_error"
    ),
    f"{_SCHEDULER}.weight_updater.SchedulerWeightUpdaterManager": (
        "begin_weight_update init_weights_update_group update_weights_from_ipc"
    ),
    "managers.tokenizer_control_mixin.TokenizerControlMixin": (
        "release_memory_occupation=refuse resume_memory_occupation=refuse"
    ),
    "managers.tokenizer_manager.TokenizerManager": (
        "_create_tokenized_object _wait_for_model_update_from_disk generate_request"
    ),
    "model_executor.model_runner.ModelRunner": (
        "alloc_memory_pool init_cuda_graphs=replay_decode_steps "
        "init_decode_cuda_graph=replay_decode_steps init_lora_manager sample"
    ),
    f"{_RUNNER}.weight_exporter.WeightExporter": "get_weights_by_name",
    f"{_RUNNER}.weight_updater.WeightUpdater": "update_weights_from_disk",
    "model_loader.loader.GGUFModelLoader": "load_model",
    "sampling.sampling_batch_info.SamplingBatchInfo": "filter_batch merge_batch",
}

#: The same, of modules that import torch_npu.
_NPU_METHODS = {
    "hardware_backend.npu.attention.ascend_backend.AscendAttnBackend": (
        "forward_decode forward_extend"
    )
}


def _rows_of(methods: Mapping[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """Module, ``Class.method``, and the name of ours if it is another."""
    for place, names in methods.items():
        module, _, cls = place.rpartition(".")
        for name in names.split():
            method, _, ours = name.partition("=")
            yield module, f"{cls}.{method}", ours or None


#: As :data:`ascend_gguf.srt.plugin.HOOKS`.
OVERRIDES = tuple(_rows_of(_METHODS))
NPU_OVERRIDES = tuple(_rows_of(_NPU_METHODS))


def override(thing: Any) -> None:
    """Give an object the methods of the tables above, for its class and those it has them from."""
    _become(thing, _overridden(type(thing)))


def override_methods(thing: Any, **hooks: Callable) -> None:
    """Give an object the methods ``hooks``, by their names.

    Raises:
        AttributeError: the engine's class has no such method.
    """
    _become(thing, _subclass(type(thing), tuple(hooks.items())))


def let_see(thing: Any, method: str, **ours: Any) -> None:
    """Let an object's method see these in place of what its module has, as :func:`seeing`."""
    override_methods(thing, **{method: _hook_seeing(**ours)})


@functools.cache
def _hook_seeing(**ours: Any) -> Callable:
    def hook(original: Callable, self: Any, *args: Any, **kwargs: Any) -> Any:
        return seeing(original, **ours)(self, *args, **kwargs)

    return hook


@functools.cache
def seeing(function: Callable, **ours: Any) -> Callable:
    """The engine's ``function`` as if its module had these functions instead of its own.

    Raises:
        AttributeError: the function does not mention them.
    """
    code = function.__code__
    if missing := ours.keys() - set(code.co_names):
        raise AttributeError(f"{function.__qualname__} mentions no {', '.join(sorted(missing))}")
    found = FunctionType(
        code,
        function.__globals__ | ours,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found


def rows() -> Iterator[tuple[str, Callable, Callable]]:
    """Each row of the tables: class and method, the engine's function and ours.

    Functions that some known release does not have are left out where they are missing.

    Raises:
        ImportError, AttributeError: one of them is not there.
    """
    for module, target, name in OVERRIDES + (NPU_OVERRIDES if is_npu() else ()):
        cls, _, method = target.partition(".")
        engine_class = getattr(import_module(f"{_ENGINE}.{module}"), cls)
        if not hasattr(engine_class, method) and fingerprints.may_lack((module, target)):
            continue
        engine = getattr(engine_class, method)
        yield target, engine, getattr(import_module(f"{_PATCH}.{module}"), name or method)


@functools.cache
def _overridden(cls: type) -> type:
    hooks = {
        target.partition(".")[2]: hook
        for target, engine, hook in rows()
        # A class below it may have another method of its own, which stays.
        if getattr(cls, target.partition(".")[2], None) is engine
    }
    return _subclass(cls, tuple(hooks.items()))


@functools.cache
def _subclass(cls: type, hooks: tuple[tuple[str, Callable], ...]) -> type:
    if not hooks:
        return cls
    methods = {name: _around(getattr(cls, name), hook) for name, hook in hooks}
    # Without slots of its own, so that objects of the class can become one of this.
    return type(cls)(cls.__name__, (cls,), {"__slots__": (), "__module__": __name__, **methods})


def _around(original: Callable, hook: Callable) -> Callable:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hook(original, self, *args, **kwargs)

    return method


def _become(thing: Any, cls: type) -> None:
    if cls is not type(thing):
        object.__setattr__(thing, "__class__", cls)  # also of a frozen dataclass
