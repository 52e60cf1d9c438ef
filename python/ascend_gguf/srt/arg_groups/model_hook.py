"""What the engine demands of the options for one architecture or another."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of, resolving_view
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase
from sglang.srt.utils import get_bool_env_var, is_cpu, is_npu
from sglang.srt.utils.hf_transformers.common import check_gguf_file
from torch.torch_version import TorchVersion

from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.products import ATTENTION, this_product
from ascend_gguf.servable import reach as reach_of
from ascend_gguf.servable import refuse_on_npu
from ascend_gguf.srt.arg_groups.parallel_hook import attention_dp_size, check_ranks
from ascend_gguf.srt.arg_groups.speculative_hook import check_drafts
from ascend_gguf.srt.model_executor.layer_sizes import has_layer_sizes, latent_width
from ascend_gguf.srt.models.pipeline import model_class_of
from ascend_gguf.srt.plugin import HTTP_WORKER

#: Models of two types of layers whose keys and values have the same sizes.
_ONE_CACHE = ("laguna_text", "mellum", "mimo2", "muse_glimmer_text", "spark2_5", "step35")

logger = logging.getLogger(__name__)

_SOURCE = "ascend_gguf.model"
#: A process that answers requests has to begin within them.
_SECONDS_TO_IMPORT = 60

#: What the widths of heads are multiples of in CANN's attention operators, and at most.
HEAD_MULTIPLE, _WIDEST_HEAD = 16, 512


def has_odd_width(size: int) -> bool:
    """True for a width of heads that CANN's attention operators do not take."""
    return size % HEAD_MULTIPLE != 0 or size > _WIDEST_HEAD


def handle_model_specific_adjustments(original: Callable, server_args: Any) -> None:
    """AROUND the engine's checks: let models attend by backends that it thinks cannot.

    EXAONE 4, K-EXAONE and Gemma 4 need windows, which both have, the one for Ascend with
    :mod:`ascend_gguf.srt.hardware_backend.npu.attention.ascend_backend`; gpt-oss needs sinks, which
    the one for the CPU has with :mod:`ascend_gguf.srt.layers.attention.torch_native_backend`.
    What they cannot do at all is kept from being asked of them.
    """
    if not check_gguf_file(resolving_view(server_args).model_path):
        return original(server_args)
    config = model_config_of(server_args).hf_config
    check_ranks(server_args)
    _keep_within_reach(server_args, config)
    if is_npu() and (reason := _attends_by_torch(server_args)):
        _do_without_graphs(server_args, reason)
    _refuse_what_is_left_out(server_args, config)
    check_drafts(server_args, unsupported=_caps(config) or _windows(config))
    if is_npu():
        refuse_on_npu(resolving_view(server_args).model_path, config)
        _reduce_in_equal_parts(server_args)
    _refuse_embeddings(server_args)
    _keep_state_in_dtype(server_args)
    _avoid_compiled_prefix_cache()
    _load_in_http_workers(server_args)
    _keep_one_cache(server_args, config)
    kind, owner = getattr(config, "model_type", None), config
    if kind in ("exaone4", "exaone_moe"):
        hidden, value = "sliding_window_pattern", None
    elif kind == "gemma4_text" or kind == "gpt_oss" and is_cpu():
        hidden, value = "architectures", ["LlamaForCausalLM"]
    elif kind in ("lfm2", "lfm2_moe", "mamba2") and is_npu():
        # The engine keeps states for the prefix cache of these, and not of others.
        hidden, value = "architectures", ["FalconH1ForCausalLM"]
    elif kind == "nemotron_h":  # for experts that are not quantized it asks for CUDA
        owner, hidden, value = model_config_of(server_args), "quantization", "gguf"
    else:
        return original(server_args)
    kept = getattr(owner, hidden)
    setattr(owner, hidden, value)
    try:
        return original(server_args)
    finally:
        # transformers writes zero for a model without windows, where the engine looks for None.
        setattr(owner, hidden, kept or None)


def _keep_within_reach(server_args: Any, config: Any) -> None:
    """A model that attends to a part, on a backend that attends to all: no more than that part."""
    chunk, reach = getattr(config, "attention_chunk_size", None), reach_of(config)
    model_config = model_config_of(server_args)
    if not reach or model_config.context_len <= reach:
        return
    logger.warning(
        "This model attends to %s %d tokens, and here SGLang to everything: the context is limited "
        "to as many (--context-length %d).",
        "chunks of" if chunk else "a choice of",
        reach,
        reach,
    )
    model_config.context_len = reach
    declare_resolution(server_args, _SOURCE, context_length=reach)


def _keep_one_cache(server_args: Any, config: Any) -> None:
    """Layers with a window and those without have one cache, in parts of their sizes.

    The engine has two for these, and neither backend reads the one of layers with a window as it
    is written.  See :mod:`ascend_gguf.srt.model_executor.layer_sizes`.
    """
    if has_layer_sizes(config) or config.model_type in _ONE_CACHE:
        declare_resolution(server_args, _SOURCE, disable_hybrid_swa_memory=True)
        model_config_of(server_args).is_hybrid_swa = False


def _keep_state_in_dtype(server_args: Any) -> None:
    """What a convolution remembers is in the model's dtype, unless the environment says another."""
    model = model_config_of(server_args)
    if mambaish_config(model) is not None and not envs.SGLANG_MAMBA_CONV_DTYPE.is_set():
        envs.SGLANG_MAMBA_CONV_DTYPE.set(str(model.dtype).removeprefix("torch."))


def _reduce_in_equal_parts(server_args: Any) -> None:
    """Ranks that attend to requests of their own get their rows of the experts' sum.

    By default in parts of their sizes, by a call of NCCL alone (``GroupCoordinator``'s
    ``reduce_scatterv``); the engine has a choice from 0.5.23 on.
    """
    options = resolving_view(server_args)
    chosen = getattr(options, "boundary_reduction", None)
    if attention_dp_size(options) > 1 and chosen in ("auto", "rsv", "rs+rsv"):
        declare_resolution(server_args, _SOURCE, boundary_reduction="rs")


def _avoid_compiled_prefix_cache() -> None:
    """Take the engine's prefix cache in Python where its wheel's compiled one ends the server.

    It is compiled for torch 2.14, runs with 2.13, and is taken with 2.11 and 2.12 too.
    """
    backend = envs.SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND
    if is_cpu() and TorchVersion(torch.__version__) < "2.13" and not backend.is_set():
        backend.set("python")


def _load_in_http_workers(server_args: Any) -> None:
    """Processes that answer requests beside each other begin with our application.

    Raises:
        GGUFError: this engine's begin with its own, which loads no plugin.
    """
    options = resolving_view(server_args)
    if options.tokenizer_worker_num == 1:
        return
    path = getattr(envs, "SGLANG_HTTP_SERVER_APP_PATH", None)
    if path is None:
        raise GGUFError(
            "this SGLang loads no plugins in several tokenizer processes, 0.5.23 does",
            file=options.model_path,
            hint="Leave out --tokenizer-worker-num, or install SGLang 0.5.23.",
        )
    if not path.is_set():
        path.set(f"{HTTP_WORKER}:app")
    if not envs.SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT.is_set():
        # One that imports does not answer yet, and would be ended again and again on a slow host.
        envs.SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT.set(_SECONDS_TO_IMPORT)


def _refuse_what_is_left_out(server_args: Any, config: Any) -> None:
    """Raises GGUFError where the engine would attend to something else than the model does."""
    options = resolving_view(server_args)
    file = options.model_path
    if is_npu() and config.model_type == "gpt_oss" and get_bool_env_var("ASCEND_USE_FIA"):
        raise GGUFError(
            "SGLang's fused attention on Ascend leaves out the sinks of this model",
            file=file,
            hint="Unset ASCEND_USE_FIA.",
        )
    if is_npu() and options.kv_cache_dtype in ("bf16", "bfloat16"):
        dtype = model_config_of(server_args).dtype
        if dtype != torch.bfloat16:
            raise GGUFError(
                "attention on an NPU reads keys and values in the model's dtype",
                file=file,
                found=f"--kv-cache-dtype {options.kv_cache_dtype}, {dtype}",
                hint="Leave out --kv-cache-dtype.",
            )


def _refuse_embeddings(server_args: Any) -> None:
    """Raises GGUFError where the engine's class would be asked for what it does not know."""
    options = resolving_view(server_args)
    if not options.is_embedding:
        return
    model_class = model_class_of(model_config_of(server_args))
    if "get_embedding" not in inspect.signature(model_class.forward).parameters:
        raise GGUFError(
            f"SGLang's {model_class.__name__} gives no embeddings",
            file=options.model_path,
            hint="Leave out --is-embedding.",
        )


def _windows(config: Any) -> bool:
    layers = getattr(config, "layer_types", None) or ()
    in_every_layer = config.model_type == "phi3" and config.sliding_window
    return bool(in_every_layer or "sliding_attention" in layers)


def _caps(config: Any) -> bool:
    names = ("attn_logit_softcapping", "attn_temperature_len")
    return any(getattr(config, name, None) for name in names)


def _attends_by_torch(server_args: Any) -> str:
    """Why attention is computed by torch operators on an NPU, or nothing."""
    model = model_config_of(server_args)
    if _caps(model.hf_config):
        return "This model caps the scores of attention"
    is_latent = model.attention_arch == AttentionArch.MLA
    values = getattr(model.hf_config, "v_head_dim", None) or 0
    width = latent_width(model.hf_config) if is_latent else max(model.head_dim, values)
    if width and has_odd_width(width):
        return (
            f"This model's heads are {width} wide, not a multiple of {HEAD_MULTIPLE} up to "
            f"{_WIDEST_HEAD}"
        )
    if ATTENTION in this_product().lacks:
        return "This chip's attention is computed by torch's operators"
    return ""


def _do_without_graphs(server_args: Any, reason: str) -> None:
    """No operator of an NPU does it, and what does needs to know how long requests are.

    Raises:
        GGUFError: drafted tokens are to be checked, which the engine does by such operators.
    """
    options = resolving_view(server_args)
    if options.speculative_algorithm:
        raise GGUFError(
            f"{reason}, with which SGLang checks no drafted tokens on Ascend",
            file=options.model_path,
            hint="Leave out --speculative-algorithm.",
        )
    logger.warning(
        "%s, which is not captured in graphs on an NPU: graphs are off (--disable-cuda-graph).",
        reason,
    )
    graphs = with_phase(options.cuda_graph_config, Phase.DECODE, backend=Backend.DISABLED)
    declare_resolution(server_args, _SOURCE, disable_cuda_graph=True, cuda_graph_config=graphs)
