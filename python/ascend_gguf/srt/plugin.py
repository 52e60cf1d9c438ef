"""The entry point of the patch: what it hooks into SGLang, in one table."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import re
import sys
from collections.abc import Callable
from importlib import import_module

from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.utils import is_npu

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.device import uses_ascend_methods

logger = logging.getLogger(__name__)

#: Releases of the engine that the tests run against.
ENGINE_VERSIONS = ("0.5.23",)

#: What gloo raises in the ranks beside one that has ended.
_PEER_GONE = re.compile(r"gloo.*Connection (closed|reset) by peer")

_PATCH = "ascend_gguf.srt"
_ENGINE = "sglang.srt"

#: (module below ``sglang.srt`` and, the same, below ``ascend_gguf.srt``; what it hooks in the
#: engine's module; how; the hook, where its name is not the last part of the target's)
_HOOKS: tuple[tuple[str, str, HookType, str | None], ...] = (
    ("arg_groups.model_path_hook", "resolve_hf_gguf_model_path", HookType.AROUND, None),
    ("arg_groups.validation_hook", "check_server_args", HookType.AROUND, None),
    ("arg_groups.model_hook", "handle_model_specific_adjustments", HookType.AROUND, None),
    ("utils.hf_transformers.config", "get_config", HookType.AROUND, None),
    ("utils.hf_transformers.common", "get_generation_config", HookType.AROUND, None),
    ("utils.hf_transformers.tokenizer", "get_tokenizer", HookType.AROUND, None),
    ("layers.quantization.gguf", "GGUFConfig.get_quant_method", HookType.AROUND, None),
    ("distributed.bootstrap", "_resolve_dist_init_method", HookType.AROUND, None),
    ("lora.lora", "LoRAAdapter.initialize_weights", HookType.AROUND, None),
    (
        "entrypoints.openai.serving_chat",
        "OpenAIServingChat._process_messages",
        HookType.AROUND,
        None,
    ),
    (
        "entrypoints.openai.serving_rerank",
        "OpenAIServingRerank._handle_non_streaming_request",
        HookType.AROUND,
        None,
    ),
    (
        "entrypoints.openai.serving_base",
        "OpenAIServingBase.create_error_response",
        HookType.AROUND,
        None,
    ),
    (
        "entrypoints.ollama.serving",
        "OllamaServing._convert_options_to_sampling_params",
        HookType.AROUND,
        None,
    ),
    *(
        ("entrypoints.ollama.serving", f"OllamaServing.{name}", HookType.AROUND, "stream_whole")
        for name in ("_stream_chat_response", "_stream_generate_response")
    ),
    ("managers.tokenizer_manager", "TokenizerManager.generate_request", HookType.AROUND, None),
    (
        "managers.tokenizer_manager",
        "TokenizerManager._create_tokenized_object",
        HookType.AROUND,
        None,
    ),
    ("managers.scheduler", "Scheduler.init_request_dispatcher", HookType.AFTER, "guard_requests"),
    *(
        (
            "managers.scheduler_components.profiler_manager",
            f"SchedulerProfilerManager.{name}",
            HookType.AROUND,
            "ended_by_an_error",
        )
        for name in ("_profile", "_profile_batch_predicate")
    ),
    ("managers.schedule_batch", "Req._check_str_based_finish", HookType.AROUND, None),
    ("managers.schedule_batch", "Req._check_vocab_boundary_finish", HookType.AROUND, None),
    (
        "managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.process_batch_result_prefill",
        HookType.AROUND,
        None,
    ),
    ("managers.utils", "GenerationBatchResult.copy_to_cpu", HookType.AROUND, None),
    *(
        (
            "managers.scheduler_components.weight_updater",
            f"SchedulerWeightUpdaterManager.{name}",
            HookType.AROUND,
            None,
        )
        for name in ("begin_weight_update", "init_weights_update_group", "update_weights_from_ipc")
    ),
    (
        "managers.tokenizer_manager",
        "TokenizerManager._wait_for_model_update_from_disk",
        HookType.AROUND,
        None,
    ),
    *(
        (
            "managers.tokenizer_control_mixin",
            f"TokenizerControlMixin.{name}_memory_occupation",
            HookType.AROUND,
            None,
        )
        for name in ("release", "resume")
    ),
    (
        "managers.detokenizer_manager",
        "DetokenizerManager._decode_batch_token_id_output",
        HookType.BEFORE,
        "split_prompts_at_characters",
    ),
    ("model_executor.model_runner", "ModelRunner.alloc_memory_pool", HookType.AROUND, None),
    ("model_executor.model_runner", "ModelRunner.sample", HookType.AROUND, None),
    (
        "model_executor.model_runner_components.cuda_graph_setup",
        "capture_decode_graph",
        HookType.AROUND,
        None,
    ),
    (
        "model_executor.model_runner_components.weight_updater",
        "WeightUpdater.update_weights_from_disk",
        HookType.AROUND,
        None,
    ),
    (
        "model_executor.model_runner_components.weight_exporter",
        "WeightExporter.get_weights_by_name",
        HookType.AROUND,
        None,
    ),
    ("speculative.eagle_utils", "eagle_sample", HookType.AROUND, None),
    ("model_loader.loader", "GGUFModelLoader.__init__", HookType.AROUND, None),
    ("model_loader.loader", "GGUFModelLoader.load_model", HookType.AROUND, None),
    *(
        (
            "layers.attention.torch_native_backend",
            f"TorchNativeAttnBackend.{name}",
            HookType.AROUND,
            None,
        )
        for name in (
            "forward_extend",
            "forward_decode",
            "_run_sdpa_forward_extend",
            "_run_sdpa_forward_decode",
        )
    ),
    ("layers.sampler", "multinomial_with_seed", HookType.AROUND, None),
    ("layers.sampler", "Sampler._sample_from_logits", HookType.AROUND, None),
    ("layers.sampler", "sampling_from_probs_torch", HookType.AROUND, None),
    (
        "layers.sampler",
        "top_k_top_p_min_p_sampling_from_probs_torch",
        HookType.AROUND,
        None,
    ),
    *(
        (
            "sampling.sampling_batch_info",
            f"SamplingBatchInfo.{name}",
            HookType.AROUND,
            None,
        )
        for name in ("from_schedule_batch", "merge_batch", "filter_batch")
    ),
)

#: The same, of modules that import torch_npu.
_NPU_HOOKS: tuple[tuple[str, str, HookType, str | None], ...] = (
    *(
        (
            "hardware_backend.npu.attention.ascend_backend",
            f"AscendAttnBackend.{name}",
            HookType.AROUND,
            None,
        )
        for name in ("forward_extend", "forward_decode")
    ),
)

#: The same, of what the main process alone imports.
_SERVER_HOOKS: tuple[tuple[str, str, HookType, str | None], ...] = (
    ("entrypoints.http_server", "launch_server", HookType.AROUND, None),
    ("entrypoints.http_server", "ORJSONRequest.json", HookType.AROUND, "checked_json"),
)


def hooks() -> tuple[tuple[str, str, HookType, str | None], ...]:
    """The hooks of this process."""
    npu = _NPU_HOOKS if is_npu() else ()
    server = _SERVER_HOOKS if multiprocessing.parent_process() is None else ()
    return _HOOKS + npu + server


def register() -> None:
    """Register the hooks.  The engine calls this in each of its processes (``load_plugins``)."""
    import sglang

    if sglang.__version__ not in ENGINE_VERSIONS:
        _refuse(sglang.__version__)
        return
    _report_gguf_errors_in_one_line()
    for module, target, kind, name in hooks():
        name = name or target.rpartition(".")[2]
        hook = getattr(import_module(f"{_PATCH}.{module}"), name)
        HookRegistry.register(f"{_ENGINE}.{module}.{target}", where_served(hook, kind), kind)


def where_served(hook: Callable, kind: HookType) -> Callable:
    """``hook``, doing nothing in the engine on devices that the patch does not serve.

    What replaces something of the engine is as it was: nothing asks for it there.
    """
    if kind is HookType.REPLACE:
        return hook

    @functools.wraps(hook)
    def stepping_aside(first, *args, **kwargs):
        if uses_ascend_methods():
            return hook(first, *args, **kwargs)
        # AROUND is given what it stands around; None from AFTER keeps the result.
        return first(*args, **kwargs) if kind is HookType.AROUND else None

    return stepping_aside


def _refuse(version: str) -> None:
    """Let an unknown engine run everything but GGUF: half a patch would give wrong numbers."""
    from ascend_gguf import __version__

    message = (
        f"ascend-gguf {__version__} patches SGLang {' or '.join(ENGINE_VERSIONS)}, and this is "
        f"SGLang {version}: GGUF models are refused. Install a matching pair of versions, or "
        f"uninstall ascend-gguf to use the engine's own GGUF support."
    )
    logger.warning(message)

    def refuse(*args, **kwargs):
        raise RuntimeError(message)

    def refuse_gguf(server_args):
        if str(server_args.model_path).endswith(".gguf"):
            refuse()

    # The first ends the command before anything is started, the second holds whatever the name.
    for target, hook in (
        ("arg_groups.model_path_hook.resolve_hf_gguf_model_path", refuse_gguf),
        ("model_loader.loader.GGUFModelLoader.__init__", refuse),
    ):
        HookRegistry.register(f"{_ENGINE}.{target}", hook, HookType.BEFORE)


def _report_gguf_errors_in_one_line() -> None:
    """An error about the user's file ends the command with its message, not with a traceback."""
    default = sys.excepthook
    logging.getLogger("sglang.srt.managers.scheduler").addFilter(_without_traceback)

    @functools.wraps(default)
    def excepthook(kind, error, traceback):
        if isinstance(error, GGUFError):
            print(f"error: {error}", file=sys.stderr)
        else:
            default(kind, error, traceback)

    sys.excepthook = excepthook


def _without_traceback(record: logging.LogRecord) -> bool:
    """Filter of the scheduler's log: one line where a rank ends because of the file.

    The other ranks then lose their connections to it, of which they need not say more either.
    """
    error = sys.exc_info()[1]
    if isinstance(error, GGUFError):
        record.msg, record.args = "error: %s", (error,)
    elif _PEER_GONE.search(str(error)) and uses_ascend_methods():
        record.msg, record.args = "Another rank has ended, and so does this one.", ()
    return True
