"""Methods of the engine's objects that serve a GGUF model: a subclass for them, not for others.

The engine's classes stay as they are.  An object that serves a GGUF model gets a subclass of its
class, in which each overridden method calls ours with the engine's first, as an AROUND hook is
called: ``hook(original, self, ...)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

from sglang.srt.utils import is_npu

from ascend_gguf.srt import fingerprints

_PATCH = "ascend_gguf.srt"
_ENGINE = "sglang.srt"

#: (module below ``sglang.srt`` and, the same, below ``ascend_gguf.srt``; class and method; ours,
#: where its name is another)
OVERRIDES: tuple[tuple[str, str, str | None], ...] = (
    ("entrypoints.ollama.serving", "OllamaServing._convert_options_to_sampling_params", None),
    ("entrypoints.ollama.serving", "OllamaServing._stream_chat_response", "stream_whole"),
    ("entrypoints.ollama.serving", "OllamaServing._stream_generate_response", "stream_whole"),
    ("entrypoints.openai.serving_base", "OpenAIServingBase.create_error_response", None),
    ("entrypoints.openai.serving_chat", "OpenAIServingChat._process_messages", None),
    (
        "entrypoints.openai.serving_rerank",
        "OpenAIServingRerank._handle_non_streaming_request",
        None,
    ),
    ("layers.activation", "SiluAndMul.forward_native", "silu_and_mul"),
    ("layers.activation", "GeluAndMul.forward_native", "gelu_and_mul"),
    *(
        ("layers.attention.torch_native_backend", f"TorchNativeAttnBackend.{name}", None)
        for name in (
            "forward_extend",
            "forward_decode",
            "_run_sdpa_forward_extend",
            "_run_sdpa_forward_decode",
        )
    ),
    ("layers.layernorm", "RMSNorm.forward_native", None),
    ("layers.layernorm", "GemmaRMSNorm.forward_native", "gemma_norm"),
    ("layers.layernorm", "Gemma3RMSNorm.forward_native", "gemma_norm"),
    (
        "layers.moe.token_dispatcher.ascend_tp",
        "AscendTPDispatcher.set_ascend_dispatcher_output_dtype",
        None,
    ),
    ("layers.moe.topk", "TopK.forward_native", None),
    ("layers.moe.topk", "TopK.forward_npu", None),
    ("layers.rotary_embedding.base", "RotaryEmbedding.forward_native", None),
    ("layers.sampler", "Sampler._sample_from_logits", None),
    ("layers.sampler", "Sampler._sample_from_probs", None),
    ("managers.schedule_batch", "Req._check_str_based_finish", None),
    ("managers.schedule_batch", "Req._check_vocab_boundary_finish", None),
    *(
        ("managers.scheduler", f"Scheduler.{name}", None)
        for name in (
            "_add_request_to_queue",
            "init_batch_result_processor",
            "init_profiler",
            "init_request_dispatcher",
            "init_weight_updater",
        )
    ),
    (
        "managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.process_batch_result_prefill",
        None,
    ),
    *(
        (
            "managers.scheduler_components.profiler_manager",
            f"SchedulerProfilerManager.{name}",
            "ended_by_an_error",
        )
        for name in ("_profile", "_profile_batch_predicate")
    ),
    *(
        (
            "managers.scheduler_components.weight_updater",
            f"SchedulerWeightUpdaterManager.{name}",
            None,
        )
        for name in ("begin_weight_update", "init_weights_update_group", "update_weights_from_ipc")
    ),
    *(
        (
            "managers.tokenizer_control_mixin",
            f"TokenizerControlMixin.{name}_memory_occupation",
            "refuse",
        )
        for name in ("release", "resume")
    ),
    *(
        ("managers.tokenizer_manager", f"TokenizerManager.{name}", None)
        for name in (
            "_create_tokenized_object",
            "_wait_for_model_update_from_disk",
            "generate_request",
        )
    ),
    ("model_executor.model_runner", "ModelRunner.alloc_memory_pool", None),
    ("model_executor.model_runner", "ModelRunner.init_cuda_graphs", "replay_decode_steps"),
    ("model_executor.model_runner", "ModelRunner.init_decode_cuda_graph", "replay_decode_steps"),
    ("model_executor.model_runner", "ModelRunner.init_lora_manager", None),
    ("model_executor.model_runner", "ModelRunner.sample", None),
    (
        "model_executor.model_runner_components.weight_exporter",
        "WeightExporter.get_weights_by_name",
        None,
    ),
    (
        "model_executor.model_runner_components.weight_updater",
        "WeightUpdater.update_weights_from_disk",
        None,
    ),
    ("model_loader.loader", "GGUFModelLoader.load_model", None),
    ("sampling.sampling_batch_info", "SamplingBatchInfo.filter_batch", None),
    ("sampling.sampling_batch_info", "SamplingBatchInfo.merge_batch", None),
)

#: The same, of modules that import torch_npu.
NPU_OVERRIDES: tuple[tuple[str, str, str | None], ...] = tuple(
    ("hardware_backend.npu.attention.ascend_backend", f"AscendAttnBackend.{name}", None)
    for name in ("forward_decode", "forward_extend")
)


def override(thing: Any) -> None:
    """Give an object the methods of the tables above, for its class and those it has them from."""
    _become(thing, _overridden(type(thing)))


def override_methods(thing: Any, **hooks: Callable) -> None:
    """Give an object the methods ``hooks``, by their names.

    Raises:
        AttributeError: the engine's class has no such method.
    """
    _become(thing, _subclass(type(thing), tuple(hooks.items())))


@functools.cache
def seeing(function: Callable, **ours: Callable) -> Callable:
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
