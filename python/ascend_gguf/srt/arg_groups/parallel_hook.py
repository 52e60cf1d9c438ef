"""What several ranks cannot share, told before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from typing import Any

from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
from sglang.srt.configs.model_config import AttentionArch, ModelConfig
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.runtime_context import derive_attn_tp_size
from sglang.srt.utils import is_cpu

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFTensor, open_gguf
from ascend_gguf.srt.models.pipeline import has_stages

# Numbers of ranks to propose, at the most.
_MOST_RANKS = 16

# The matrices whose input is cut, by the end of their names in the file.
_WIDTHS = {
    "ffn_down": "columns of a feed-forward layer",
    "ffn_down_exps": "columns of an expert",
    "ffn_down_shexp": "columns of the shared experts",
}

# On the CPU the engine pads heads and widths.  These models of its own are wrong then: they divide
# the hidden size by the padded number of heads, or norm all heads together.
_NOT_PADDED = frozenset(
    ("MixtralForCausalLM", "GraniteMoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
    + ("CohereForCausalLM", "Cohere2ForCausalLM", "Starcoder2ForCausalLM", "Exaone4ForCausalLM")
    + ("MiniMaxM2ForCausalLM",)
)


def check_ranks(server_args: Any) -> None:
    """Check that the ranks that are asked for can share the model of a GGUF file.

    Raises:
        GGUFError: heads, widths or experts do not divide, or the engine's model has no stages.
    """
    options, model_config = resolving_view(server_args), model_config_of(server_args)
    if options.pp_size > 1:
        _check_stages(options, model_config)
    if options.tp_size > 1:
        _check_shares(options, model_config)


def _check_stages(options: Any, model_config: ModelConfig) -> None:
    as_loaded = copy(model_config)
    as_loaded.quantization = "gguf"  # the engine has another Mixtral then
    model_class, name = get_model_architecture(as_loaded)  # imports every model
    layers = model_config.num_hidden_layers
    if not has_stages(model_class):
        raise GGUFError(
            f"SGLang's {name} runs on one stage only",
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


def _check_shares(options: Any, model_config: ModelConfig) -> None:
    uneven = list(_uneven(options.tp_size, options, model_config))
    if not uneven:
        return
    *others, last = [
        str(size)
        for size in range(1, _MOST_RANKS + 1)
        if not any(_uneven(size, options, model_config))
    ] or [""]
    even = f"{', '.join(others)} or {last}" if others else last
    raise GGUFError(
        f"{options.tp_size} ranks cannot share {' and '.join(uneven)}",
        file=options.model_path,
        found=f"--tp-size {options.tp_size}"
        + f" --ep-size {options.ep_size}" * (options.ep_size > 1),
        hint=f"Use --tp-size {even}." if even else "Use another --ep-size too.",
    )


def _uneven(tp_size: int, options: Any, model_config: ModelConfig) -> Iterator[str]:
    """What ``tp_size`` ranks cannot share evenly, in words."""
    if tp_size % (options.ep_size * options.moe_dp_size):
        yield f"experts that are dealt to {options.ep_size} parts"
        return
    widths = _widths(options.model_path)
    experts = max((tensor.shape[0] for tensor in widths.get("ffn_down_exps", ())), default=0)
    if experts % options.ep_size:
        yield f"{experts} experts"
    pads = is_cpu()
    if pads and _NOT_PADDED.isdisjoint(model_config.hf_config.architectures):
        return
    attention = derive_attn_tp_size(
        tp_size=tp_size, attn_cp_size=options.attn_cp_size, attn_dp_size=options.attn_dp_size
    )
    heads, kv_heads = model_config.num_attention_heads, model_config.get_total_num_kv_heads()
    is_latent = model_config.attention_arch == AttentionArch.MLA
    if not attention or heads % attention:
        yield f"{heads} attention heads"
    elif not is_latent and kv_heads % attention and (pads or attention % kv_heads):
        yield f"{kv_heads} key-value heads"
    if pads:
        return
    for name in sorted(widths):
        parts = tp_size
        if name == "ffn_down_exps":
            parts //= options.ep_size * options.moe_dp_size
        for width in sorted({tensor.shape[-1] for tensor in widths[name]}):
            if width % parts:
                yield f"{width} {_WIDTHS[name]}"


def _widths(path: str) -> dict[str, list[GGUFTensor]]:
    """The matrices whose input is cut, by the end of their names."""
    found: dict[str, list[GGUFTensor]] = {}
    for name, tensor in open_gguf(path).tensors.items():
        match = re.fullmatch(r"blk\.\d+\.(\w+)\.weight", name)
        if match and match[1] in _WIDTHS:
            found.setdefault(match[1], []).append(tensor)
    return found
