"""Drafts: which models can have them, and which draft for themselves."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.arg_groups.overrides import attention_backends_of, model_config_of, resolving_view
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.environ import envs
from sglang.srt.utils import is_cpu, is_npu

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt.model_executor.layer_sizes import latent_width
from ascend_gguf.srt.models import nextn

#: The most drafted tokens, and the width of a convolution, of which Ascend's operators keep states.
_MOST_STATES, _CONVOLUTION = 8, 4

#: The most drafted tokens that Ascend's fused attention takes over latent vectors.
_MOST_OVER_LATENT = 16

#: Widths of heads with which Ascend's fused attention takes several tokens of a request.
_WIDTHS = (128, 192, 256)

_HINT = "Leave out --speculative-algorithm."


def drafts_for_itself(options: Any) -> bool:
    """True if the model is asked to draft by a layer of its own file."""
    algorithm = (options.speculative_algorithm or "").upper()
    own = (None, options.model_path)
    return algorithm in ("NEXTN", "EAGLE") and options.speculative_draft_model_path in own


def check_drafts(server_args: Any, unsupported: bool) -> None:
    """Check what is asked of drafts, if anything.

    Args:
        unsupported: the model's attention has a window or a soft-cap.

    Raises:
        GGUFError: drafted tokens could not be checked, or there is no layer that drafts.
    """
    options = resolving_view(server_args)
    if not options.speculative_algorithm:
        return
    file = options.model_path
    if is_cpu() and "torch_native" in attention_backends_of(options):
        raise GGUFError(
            "SGLang cannot check drafted tokens with --attention-backend torch_native",
            file=file,
            hint=_HINT,
        )
    if is_npu() and unsupported:
        raise GGUFError(
            "SGLang checks drafted tokens on Ascend without the windows and caps of this model",
            file=file,
            hint=_HINT,
        )
    if is_npu() and options.speculative_eagle_topk not in (None, 1):
        raise GGUFError(
            "SGLang's attention on Ascend does not know which drafted tokens are of one branch",
            file=file,
            found=f"--speculative-eagle-topk {options.speculative_eagle_topk}",
            hint="Leave out --speculative-eagle-topk.",
        )
    model = model_config_of(server_args)
    if is_npu() and model.attention_arch == AttentionArch.MLA:
        _check_latent_attention(options, model.hf_config, file)
    elif is_npu():
        _check_fused_attention(model, file)
    if is_npu() and mambaish_config(model) is not None:
        _check_states(options, model.hf_text_config, file)
    if drafts_for_itself(options):
        _check_own_layer(model.hf_config, file)


def _check_fused_attention(model: Any, file: str) -> None:
    """Raises GGUFError: the operator that checks drafted tokens does not take such queries."""
    if model.dtype == torch.bfloat16 and model.head_dim in _WIDTHS:
        return
    raise GGUFError(
        "Ascend's attention does not check drafted tokens of such queries",
        file=file,
        found=f"{model.dtype}, heads of {model.head_dim}",
        expected=f"bfloat16, heads of {', '.join(map(str, _WIDTHS))}",
        hint="Use --dtype bfloat16, or leave out --speculative-algorithm.",
    )


def _check_latent_attention(options: Any, config: Any, file: str) -> None:
    """Raises GGUFError: the operator does not check so many tokens, or over such vectors."""
    drafted = options.speculative_num_draft_tokens or 0
    joined = latent_width(config)
    if drafted > _MOST_OVER_LATENT or joined is not None:
        sizes = f"{config.kv_lora_rank} and {config.qk_rope_head_dim}, " if joined else ""
        raise GGUFError(
            "Ascend's attention over latent vectors does not check these drafted tokens",
            file=file,
            found=f"{sizes}--speculative-num-draft-tokens {drafted}",
            expected=f"vectors of 512 and keys of 64, no temperature, at most {_MOST_OVER_LATENT} "
            "tokens",
            hint="Ask for fewer (--speculative-num-steps), or leave out --speculative-algorithm.",
        )


def _check_states(options: Any, config: Any, file: str) -> None:
    """States of drafted tokens are kept in bfloat16, until some of them are accepted.

    Raises:
        GGUFError: Ascend's operators cannot keep these.
    """
    limits = {
        "linear_conv_kernel_dim": getattr(config, "linear_conv_kernel_dim", 0) == _CONVOLUTION,
        "--speculative-num-draft-tokens": (
            (options.speculative_num_draft_tokens or 0) <= _MOST_STATES
        ),
        "--mamba-ssm-dtype": options.mamba_ssm_dtype in (None, "bfloat16"),
    }
    broken = [name for name, holds in limits.items() if not holds]
    if broken:
        raise GGUFError(
            "Ascend's operators do not keep the states of such drafted tokens",
            file=file,
            found=", ".join(broken),
            expected=f"convolutions of {_CONVOLUTION} tokens, up to {_MOST_STATES} drafted tokens, "
            "--mamba-ssm-dtype bfloat16",
            hint=_HINT,
        )
    envs.SGLANG_MAMBA_SSM_DTYPE.set("bfloat16")


def _check_own_layer(config: Any, file: str) -> None:
    layers = getattr(config, "num_nextn_predict_layers", None) or 0
    if config.architectures[0] not in nextn.DRAFTS or layers != 1:
        raise GGUFError(
            "this model does not draft for itself",
            file=file,
            found=f"{config.architectures[0]}, {layers} layers for multi-token prediction",
            expected=f"{' or '.join(nextn.DRAFTS)}, one such layer",
            hint="Leave out --speculative-algorithm, or give --speculative-draft-model-path.",
        )
    nextn.name_map_of(file)
