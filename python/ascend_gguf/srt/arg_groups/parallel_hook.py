"""What several ranks cannot share, told before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
from sglang.srt.configs.model_config import AttentionArch, ModelConfig
from sglang.srt.utils import is_cpu
from sglang.srt.utils.common import get_cpu_ids_by_node

from ascend_gguf.errors import GGUFError
from ascend_gguf.ranks import Shares, uneven, uneven_experts
from ascend_gguf.srt.models.pipeline import has_stages, model_class_of

_BINDING = "SGLANG_CPU_OMP_THREADS_BIND"

# Numbers of ranks to propose, at the most.
_MOST_RANKS = 16

# On the CPU the engine pads heads and widths.  These models of its own are wrong then: they divide
# the hidden size by the padded number of heads, norm all heads together, or have a width by a name
# that it does not know.
_NOT_PADDED = frozenset(
    ("MixtralForCausalLM", "GraniteMoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
    + ("CohereForCausalLM", "Cohere2ForCausalLM", "Starcoder2ForCausalLM", "Exaone4ForCausalLM")
    + ("MiniMaxM2ForCausalLM", "OlmoForCausalLM", "OlmoeForCausalLM", "StableLmForCausalLM")
    + ("MiniMaxM3SparseForCausalLM",)
    + ("PhiForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "GraniteMoeSharedForCausalLM")
    # Not tried.
    + ("ArceeForCausalLM", "ApertusForCausalLM", "PhiMoEForCausalLM", "GemmaForCausalLM")
    + ("Ernie4_5_ForCausalLM", "ExaoneMoeForCausalLM", "MellumForCausalLM")
    + ("Cohere2MoeForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "AfmoeForCausalLM")
    + ("GraniteMoeHybridForCausalLM", "NemotronHForCausalLM", "FalconH1ForCausalLM")
    + ("DeciLMForCausalLM", "Step3p5ForCausalLM", "LagunaForCausalLM")
    + ("MiMoV2FlashForCausalLM", "DbrxForCausalLM", "GraniteSWAForCausalLM")
    + ("GraniteMoeSWAForCausalLM", "MuseGlimmerForCausalLM", "Spark2_5ForCausalLM")
    + ("Grok1ForCausalLM", "HYV4ForCausalLM")
)

# Models of the engine of which some ranks may attend without the others (--enable-dp-attention,
# --attn-cp-size).  The others allocate a KV cache for all heads and write a rank's share of them,
# or wait for ranks that have nothing to compute.  Each of these was compared on the simulated NPU.
_ATTENDS_IN_GROUPS = frozenset(
    ("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "DeepseekV2ForCausalLM")
    + ("DeepseekV3ForCausalLM", "ExaoneMoeForCausalLM", "Glm4MoeForCausalLM", "GptOssForCausalLM")
    + ("Llama4ForCausalLM", "MellumForCausalLM", "MiMoV2FlashForCausalLM", "MiniMaxM2ForCausalLM")
    + ("MiniMaxM3SparseForCausalLM", "NemotronHForCausalLM", "Qwen2MoeForCausalLM")
    + ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
    + ("Spark2_5ForCausalLM", "Step3p5ForCausalLM")
)


def check_ranks(server_args: Any) -> None:
    """Check that the ranks that are asked for can share the model of a GGUF file.

    Raises:
        GGUFError: heads, widths or experts do not divide, or the engine's model has no stages, or
            its ranks attend together alone.
    """
    options, model_config = resolving_view(server_args), model_config_of(server_args)
    if options.pp_size > 1:
        _check_stages(options, model_config)
    if attention_dp_size(options) > 1:
        _check_groups("--enable-dp-attention", options, model_config)
    if options.attn_cp_size > 1:
        _check_groups("--attn-cp-size", options, model_config)
    if options.tp_size > 1 or options.ep_size > 1:
        _check_shares(options, model_config)
    if is_cpu():
        _check_cores(options)


def _check_cores(options: Any) -> None:
    """A rank on the CPU has a NUMA node of its own, or the cores that it is told."""
    ranks = options.tp_size * options.pp_size * options.dp_size // options.nnodes
    told = os.environ.get(_BINDING, "all")
    if ranks == 1:
        return
    parts = len(get_cpu_ids_by_node()) if told == "all" else told.count("|") + 1
    if ranks > parts:
        raise GGUFError(
            f"{ranks} ranks need cores of their own",
            file=options.model_path,
            found=f"{parts} NUMA nodes" if told == "all" else f"{_BINDING}={told}",
            hint=f"Set {_BINDING} to the cores of each rank, as in 0-3|4-7.",
        )


def _check_stages(options: Any, model_config: ModelConfig) -> None:
    model_class, layers = model_class_of(model_config), model_config.num_hidden_layers
    if not has_stages(model_class):
        raise GGUFError(
            f"SGLang's {model_class.__name__} runs on one stage only",
            file=options.model_path,
            found=f"--pp-size {options.pp_size}",
            hint="Leave out --pp-size; --tp-size shares the model among several devices.",
        )
    if options.pp_size > layers:
        raise GGUFError(
            "more stages than layers",
            file=options.model_path,
            found=f"--pp-size {options.pp_size}, {layers} layers",
            hint=f"Use --pp-size {layers} at the most.",
        )


def _check_groups(option: str, options: Any, model_config: ModelConfig) -> None:
    model_class = model_class_of(model_config).__name__
    if model_class not in _ATTENDS_IN_GROUPS:
        raise GGUFError(
            f"SGLang's {model_class} cannot attend on a part of the ranks",
            file=options.model_path,
            found=option,
            hint=f"Leave out {option}; --dp-size alone makes replicas of the model.",
        )


def _check_shares(options: Any, model_config: ModelConfig) -> None:
    parts = options.ep_size, options.moe_dp_size
    uneven = list(_uneven(options.tp_size, parts, options, model_config))
    if not uneven:
        return
    if even := _even_sizes(parts, options, model_config):
        hint = f"Use --tp-size {even}."
    elif not any(_uneven(options.tp_size, (1, 1), options, model_config)):
        hint = "Leave out --ep-size."
    elif even := _even_sizes((1, 1), options, model_config):
        hint = f"Leave out --ep-size, and use --tp-size {even}."
    else:
        hint = "Leave out --attn-dp-size."
    raise GGUFError(
        f"{options.tp_size} ranks cannot share {' and '.join(uneven)}",
        file=options.model_path,
        found=f"--tp-size {options.tp_size}"
        + f" --ep-size {options.ep_size}" * (options.ep_size > 1),
        hint=hint,
    )


def _even_sizes(parts: tuple[int, int], options: Any, model_config: ModelConfig) -> str | None:
    """Numbers of ranks that share the model evenly, in words."""
    sizes = [
        str(size)
        for size in range(1, _MOST_RANKS + 1)
        if not any(_uneven(size, parts, options, model_config))
    ]
    *others, last = sizes or [None]
    return f"{', '.join(others)} or {last}" if others else last


def _uneven(
    tp_size: int, parts: tuple[int, int], options: Any, model_config: ModelConfig
) -> Iterator[str]:
    """What ``tp_size`` ranks cannot share evenly, in words.

    Args:
        parts: ``ep_size`` and ``moe_dp_size``.
    """
    ep_size, moe_dp_size = parts
    attention = tp_size // attention_dp_size(options) // options.attn_cp_size
    shares = Shares(tp_size, ep_size, moe_dp_size, attention)
    config, pads = model_config.hf_config, is_cpu()
    if pads and _NOT_PADDED.isdisjoint(config.architectures):
        return uneven_experts(options.model_path, config, shares)
    is_latent = model_config.attention_arch == AttentionArch.MLA
    kv_heads = None if is_latent else model_config.get_total_num_kv_heads()
    heads = model_config.num_attention_heads, kv_heads
    return uneven(options.model_path, config, shares, heads, pads)


def attention_dp_size(options: Any) -> int:
    """Groups of ranks that each attend to requests of their own; before 0.5.22 ``dp_size``."""
    if hasattr(options, "attn_dp_size"):
        return options.attn_dp_size
    return options.dp_size if options.enable_dp_attention else 1
