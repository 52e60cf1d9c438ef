"""The entry point of the patch: what it hooks into SGLang, in one table."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

# Nothing else of the engine or of this package, here or above: what cannot be imported must not
# keep :func:`register` from refusing GGUF.
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

logger = logging.getLogger(__name__)

#: Set to 1: an engine whose functions are not known is patched all the same.
ALLOW_UNKNOWN = "ASCEND_GGUF_ALLOW_UNKNOWN_ENGINE"
#: Why the main process refuses GGUF, for the processes that it starts.
REFUSED = "ASCEND_GGUF_REFUSED"

#: What gloo raises in the ranks beside one that has ended.
_PEER_GONE = re.compile(r"gloo.*Connection (closed|reset) by peer")

_PATCH = "ascend_gguf.srt"
_ENGINE = "sglang.srt"

#: (module below ``sglang.srt`` and, the same, below ``ascend_gguf.srt``; what it hooks in the
#: engine's module; the hook, where its name is not the last part of the target's).  Each stands
#: AROUND its target: ``hook(original, ...)``.  Objects of a class whose ``__init__`` is hooked get
#: the methods of :mod:`ascend_gguf.srt.overrides`.
HOOKS: tuple[tuple[str, str, str | None], ...] = (
    ("arg_groups.model_hook", "handle_model_specific_adjustments", None),
    ("arg_groups.model_path_hook", "resolve_hf_gguf_model_path", None),
    ("arg_groups.validation_hook", "check_server_args", None),
    ("distributed.bootstrap", "_resolve_dist_init_method", None),
    ("layers.quantization.gguf", "GGUFConfig.get_quant_method", None),
    ("managers.detokenizer_manager", "DetokenizerManager._decode_batch_token_id_output", None),
    ("managers.scheduler", "Scheduler.__init__", None),
    ("managers.tokenizer_manager", "TokenizerManager.__init__", None),
    ("managers.utils", "GenerationBatchResult.copy_to_cpu", None),
    ("model_executor.model_runner", "ModelRunner.__init__", None),
    (
        "model_executor.model_runner_components.attention_backend_setup",
        "_build_backend_from_str",
        None,
    ),
    ("model_loader.loader", "GGUFModelLoader.__init__", None),
    ("sampling.sampling_batch_info", "SamplingBatchInfo.from_schedule_batch", None),
    ("speculative.eagle_utils", "eagle_sample", None),
    ("utils.hf_transformers.common", "get_generation_config", None),
    ("utils.hf_transformers.config", "get_config", None),
    ("utils.hf_transformers.tokenizer", "get_tokenizer", None),
)

#: The same, of modules that import torch_npu.
NPU_HOOKS: tuple[tuple[str, str, str | None], ...] = (
    ("hardware_backend.npu.attention.ascend_backend", "AscendAttnBackend.__init__", None),
)

#: The same, of processes that answer requests.
SERVER_HOOKS: tuple[tuple[str, str, str | None], ...] = (
    ("entrypoints.http_server", "launch_server", None),
    ("entrypoints.http_server", "ORJSONRequest.json", "checked_json"),
)


#: The module that a process imports first which answers requests beside others.
HTTP_WORKER = f"{_PATCH}.entrypoints.http_worker"


def register() -> None:
    """Register the hooks, all or none.  The engine calls this in each of its processes."""
    try:
        _silence_untrue_lines()
        reason = os.environ.get(REFUSED) or unknown_engine()
        if not reason:
            hooks = checked_hooks()
            import_module(f"{_PATCH}.layers.attention.torch_native_backend").register()
    except Exception as error:
        logger.debug("The patch cannot be applied", exc_info=error)
        reason = (
            f"{_names()} do not go together: {type(error).__name__}: "
            f"{' '.join(str(error).split())}. GGUF models are refused. Install both anew, or "
            f"uninstall ascend-gguf to use the engine's own GGUF support."
        )
    if reason:
        _refuse(reason)
        return
    _report_gguf_errors_in_one_line()
    for target, hook in hooks:
        HookRegistry.register(target, hook, HookType.AROUND)


def targets() -> list[tuple[str, str]]:
    """Module and name of each function that is hooked or overridden, those of a module together."""
    from ascend_gguf.srt.overrides import NPU_OVERRIDES, OVERRIDES

    tables = HOOKS + NPU_HOOKS + SERVER_HOOKS + OVERRIDES + NPU_OVERRIDES
    return sorted({(module, target) for module, target, _ in tables})


def unknown_engine() -> str | None:
    """Why this engine is not patched: functions that are like no known release's."""
    if multiprocessing.parent_process() is not None:
        return None  # the main process has looked
    from ascend_gguf.srt import fingerprints

    changed = fingerprints.changed(targets())
    if not changed:
        return None
    what = (
        f"{_names()}: these functions of the engine differ from SGLang "
        f"{', '.join(fingerprints.known())}, which ascend-gguf knows: {', '.join(changed)}."
    )
    if os.environ.get(ALLOW_UNKNOWN) == "1":
        logger.warning(
            "%s GGUF models are served all the same (%s=1): answers may be wrong.",
            *(what, ALLOW_UNKNOWN),
        )
        return None
    return (
        f"{what} GGUF models are refused. Install one of these releases, or a newer ascend-gguf. "
        f"{ALLOW_UNKNOWN}=1 serves them all the same, at your own risk."
    )


def _names() -> str:
    import sglang

    from ascend_gguf import __version__

    return f"ascend-gguf {__version__} and SGLang {sglang.__version__}"


def checked_hooks() -> list[tuple[str, Callable]]:
    """Each target of this process, and what is to stand around it: everything is there.

    Raises:
        Exception: whatever importing raises.
        AttributeError, TypeError: a target or a hook is not there, or no function.
    """
    from sglang.srt.utils import is_npu

    from ascend_gguf.srt import overrides

    table = HOOKS + (NPU_HOOKS if is_npu() else ())
    if multiprocessing.parent_process() is None or HTTP_WORKER in sys.modules:
        table += SERVER_HOOKS
    hooks = []
    for module, target, name in table:
        found: Any = import_module(f"{_ENGINE}.{module}")
        hook = getattr(import_module(f"{_PATCH}.{module}"), name or target.rpartition(".")[2])
        for part in target.split("."):
            found = getattr(found, part)
        _check_functions(target, found, hook)
        hooks.append((f"{_ENGINE}.{module}.{target}", where_served(hook)))
    for target, engine, ours in overrides.rows():
        _check_functions(target, engine, ours)
    return hooks


def _check_functions(target: str, *functions: Any) -> None:
    for function in functions:
        if isinstance(function, type) or not callable(function):
            raise TypeError(f"{target} is {function!r:.80}, no function")


def where_served(hook: Callable) -> Callable:
    """``hook``, doing nothing in the engine on devices that the patch does not serve."""
    from ascend_gguf.srt import device

    @functools.wraps(hook)
    def stepping_aside(original, *args, **kwargs):
        if device.uses_ascend_methods():
            return hook(original, *args, **kwargs)
        return original(*args, **kwargs)

    return stepping_aside


def _refuse(reason: str) -> None:
    """Let this engine run everything but GGUF: half a patch would give wrong numbers."""
    logger.warning(reason)
    os.environ[REFUSED] = reason

    def refuse(*args, **kwargs):
        raise RuntimeError(reason)

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
    """An error about the user's file or options ends the command without a traceback."""
    from ascend_gguf.srt.arg_groups.unsupported_options import error_in_one_line

    default = sys.excepthook
    logging.getLogger("sglang.srt.managers.scheduler").addFilter(_without_traceback)

    @functools.wraps(default)
    def excepthook(kind, error, traceback):
        told = error_in_one_line(error)
        if told is not None:
            print(f"error: {told}", file=sys.stderr)
        else:
            default(kind, error, traceback)

    sys.excepthook = excepthook


def _silence_untrue_lines() -> None:
    """Where the patch serves GGUF, the engine's warnings about it are not true."""
    from ascend_gguf.srt.device import uses_ascend_methods

    if uses_ascend_methods():
        untrue = "Only CUDA, MUSA and NPU support GGUF"
        warnings.filterwarnings("ignore", message=untrue)
        # Processes that are started import the engine before this.
        sys.warnoptions.append(f"ignore:{untrue}:UserWarning")
        logging.getLogger(f"{_ENGINE}.configs.model_config").addFilter(
            lambda record: (
                not (
                    str(record.msg).startswith("%s quantization is not fully optimized")
                    and record.args == ("gguf",)
                )
            )
        )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Filter of the scheduler's log: one line where a rank ends because of the file.

    The other ranks then lose their connections to it, of which they need not say more either.
    """
    from ascend_gguf.errors import GGUFError
    from ascend_gguf.srt.device import uses_ascend_methods

    error = sys.exc_info()[1]
    if isinstance(error, GGUFError):
        record.msg, record.args = "error: %s", (error,)
    elif _PEER_GONE.search(str(error)) and uses_ascend_methods():
        record.msg, record.args = "Another rank has ended, and so does this one.", ()
    return True
