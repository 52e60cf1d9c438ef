"""What the engine's models get wrong with GGUF files, repaired where a model is built.

Three tables: of configurations, before a model is built, of classes that others take the place of
meanwhile, and of its modules, after.  Models that are not GGUF never come here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torch import nn

from ascend_gguf.errors import GGUFError
from ascend_gguf.srt import fingerprints
from ascend_gguf.srt.models.rotary import avoid_rotary_kernel
from ascend_gguf.srt.overrides import override
from ascend_gguf.srt.plugin import ALLOW_UNKNOWN

#: ``model_type`` to a function of the configuration, in a module beside this one.
CONFIG_REPAIRS = {
    "cohere2_moe": "commandr.count_dense_layers",
    "dbrx": "dbrx.name_base",
    "deci": "nemotron_nas.set_blocks",
    "deepseek_v2": "deepseek_v2.as_yarn",
    "deepseek_v3": "deepseek_v2.as_yarn",
    "falcon_h1": "mamba2.share_group",
    "gemma3n_text": "gemma3n_causal.repair_config",
    "granite_swa": "granite.set_base",
    "granitemoe_swa": "granite.set_base",
    "granitemoehybrid": "mamba2.share_group",
    "grok": "grok.whole_experts",
    "hy_v4": "deepseek_v2.as_yarn",
    "laguna_text": "laguna.name_sizes",
    "mamba2": "nemotron_h.repair_config",
    "mimo2": "mimo_v2.name_sizes",
    "muse_glimmer_text": "muse_glimmer.name_sizes",
    "nemotron_h": "nemotron_h.repair_config",
    "qwen3_5_moe_text": "qwen3_5.set_layers",
    "qwen3_5_text": "qwen3_5.set_layers",
    "step35": "step3p5.name_sizes",
}

#: A class below ``sglang.srt.models`` that cannot be built for a file, to the one that takes its
#: place while a model of its module is built.
REPLACED = {
    "afmoe.AfmoeMoE": "afmoe.StackedExperts",
    "dbrx.DbrxExperts": "dbrx.StackedExperts",
}

#: A class below ``sglang.srt.models``, or in ``sglang.srt.layers``, to a function, as above, of its
#: module and the configuration.
REPAIRS = {
    "afmoe.AfmoeForCausalLM": "single_experts.load_experts_one_by_one",
    "apertus.ApertusModel": "apertus.set_activations",
    "bailing_moe.BailingMoEForCausalLM": "bailing_moe.repair_loading",
    "bailing_moe.BailingMoESparseMoeBlock": "routing.scale",
    "bert.BertEmbedding": "bert.repair_embedding",
    "cohere2_moe.Cohere2MoeAttention": "commandr.repair_attention",
    "commandr.CohereAttention": "commandr.repair_attention",
    "dbrx.DbrxAttention": "rotary.set_rotary_embedding",
    "dbrx.DbrxForCausalLM": "single_experts.load_experts_one_by_one",
    "deepseek_v2.DeepseekV2AttentionMLA": "deepseek_v2.repair_attention",
    "exaone4.Exaone4Attention": "exaone4.repair_attention",
    "exaone_moe.ExaoneMoEAttention": "exaone4.repair_moe_attention",
    "falcon_h1.FalconH1ForCausalLM": "falcon_h1.keep_embedding_in_dtype",
    "falcon_h1.FalconH1HybridAttentionDecoderLayer": "falcon_h1.drop_norms",
    "gemma.GemmaAttention": "rotary.set_rotary_embedding",
    "gemma.GemmaForCausalLM": "gemma.repair_loading",
    "gemma.GemmaMLP": "gemma.repair_activation",
    "gemma2.Gemma2Attention": "gemma2.repair_attention",
    "gemma3_causal.Gemma3Attention": "gemma3_causal.repair_attention",
    "gemma3_causal.Gemma3ForCausalLM": "gemma3_causal.repair_embedding",
    "gemma3n_causal.Gemma3nAttention": "gemma3n_causal.repair_attention",
    "gemma3n_causal.Gemma3nDecoderLayer": "gemma3n_causal.repair_layer",
    "gemma3n_causal.Gemma3nForCausalLM": "gemma4_causal.repair_embeddings",
    "gemma3n_causal.Gemma3nTextMLP": "gemma3n_causal.repair_activation",
    "gemma3n_causal.Gemma3nTextModel": "gemma3n_causal.repair_streams",
    "gemma4_causal.Gemma4Attention": "gemma4_causal.repair_attention",
    "gemma4_causal.Gemma4ForCausalLM": "gemma4_causal.repair_embeddings",
    "gemma4_causal.Gemma4MoE": "gemma4_causal.repair_experts",
    "gemma4_causal.Gemma4Router": "gemma4_causal.repair_router",
    "glm4_moe.Glm4MoeSparseMoeBlock": "routing.by_sigmoid",
    "gpt2.GPT2Attention": "gpt2.repair_attention",
    "gpt2.GPT2LMHeadModel": "gpt2.repair_loading",
    "gpt_oss.GptOssAttention": "gpt_oss.repair_attention",
    "gpt_oss.GptOssForCausalLM": "single_experts.load_experts_one_by_one",
    "granite.GraniteAttention": "granite.repair_attention",
    "granitemoe.GraniteMoeAttention": "granite.repair_moe_attention",
    "granitemoe.GraniteMoeSWAForCausalLM": "granitemoe.repair_loading",
    "granitemoe.GraniteMoeSharedForCausalLM": "granitemoe.repair_loading",
    "granitemoehybrid.GraniteMoeHybridForCausalLM": "granitemoe.repair_hybrid_loading",
    "grok.Grok1Attention": "grok.repair_attention",
    "grok.Grok1DecoderLayer": "grok.repair_layer",
    "grok.Grok1ForCausalLM": "grok.repair_model",
    "grok.Grok1MLP": "grok.repair_network",
    "grok.Grok1MoE": "grok.repair_experts",
    "grok.Grok1Model": "grok.repair_layers",
    "hunyuan.HunYuanAttention": "hunyuan.repair_attention",
    "hunyuan.HunYuanSparseMoeBlock": "routing.renormalize",
    "hunyuan_v4.HYV4Attention": "hunyuan_v4.repair_attention",
    "kimi_linear.KimiDeltaAttention": "kimi_linear.repair_attention",
    "kimi_linear.KimiMoE": "kimi_linear.repair_experts",
    "laguna.LagunaAttention": "rotary.set_rotary_of_type",
    "laguna.LagunaForCausalLM": "laguna.repair_embedding",
    "layers.attention.mamba.mamba.MambaMixer2": "mamba2.repair_mixer",
    "lfm2.Lfm2Attention": "lfm2.repair_attention",
    "lfm2.Lfm2ShortConv": "lfm2.repair_convolution",
    "lfm2_moe.Lfm2MoeAttention": "lfm2.repair_attention",
    "lfm2_moe.Lfm2MoeShortConv": "lfm2.repair_convolution",
    "llama.Phi3ForCausalLM": "windows.attend_in_window",
    "llama4.Llama4Attention": "llama4.repair_attention",
    "llama4.Llama4ForCausalLM": "single_experts.load_experts_one_by_one",
    "llama4.Llama4MoE": "llama4.repair_experts",
    "mellum.MellumAttention": "mellum.repair_attention",
    "mimo_v2.MiMoV2Attention": "mimo_v2.repair_attention",
    "minicpm3.MiniCPM3ForCausalLM": "minicpm3.keep_projections",
    "minimax_m2.MiniMaxM2Attention": "minimax_m2.repair_norm",
    "minimax_m3.MiniMaxM3Attention": "minimax_m3.repair_attention",
    "minimax_m3.MiniMaxM3MLP": "minimax_m3.set_activation",
    "minimax_m3.MiniMaxM3MoE": "minimax_m3.repair_routing",
    "ministral3.Ministral3Attention": "rotary.set_rotary_embedding",
    "mixtral.MixtralModel": "mixtral.replace_attention",
    "muse_glimmer.MuseGlimmerAttention": "muse_glimmer.repair_attention",
    "nanbeige.NanbeigeAttention": "rotary.set_rotary_embedding",
    "nemotron_h.NemotronHMoE": "nemotron_h.repair_experts",
    "nemotron_nas.DeciLMForCausalLM": "nemotron_nas.repair_model",
    "olmo.OlmoAttention": "rotary.set_rotary_embedding",
    "olmoe.OlmoeAttention": "olmoe.repair_attention",
    "phi.PhiAttention": "rotary.set_rotary_embedding",
    "phi.PhiForCausalLM": "phi.repair_model",
    "phimoe.PhiMoEAttention": "rotary.set_rotary_embedding",
    "phimoe.PhiMoEForCausalLM": "output_matrix.add_output_bias",
    "qwen2_moe.Qwen2MoeSparseMoeBlock": "qwen2_moe.repair_shared_expert",
    "qwen3_5.Qwen3_5GatedDeltaNet": "qwen3_5.repair_delta_net",
    "qwen3_5_text.Qwen3_5ForCausalLM": "output_matrix.load_output_matrix",
    "qwen3_classification.Qwen3ForSequenceClassification": "qwen3_classification.use_float32_head",
    "qwen3_moe.Qwen3MoeSparseMoeBlock": "routing.renormalize_as_configured",
    "qwen3_next.Qwen3GatedDeltaNet": "qwen3_5.refuse_other_class",
    "spark2_5.Spark2_5Attention": "rotary.set_rotary_of_type",
    "stablelm.StablelmAttention": "rotary.set_rotary_embedding",
    "starcoder2.Starcoder2Attention": "rotary.set_rotary_embedding",
    "step3p5.Step3p5Attention": "step3p5.repair_attention",
    "step3p5.Step3p5ForCausalLM": "step3p5.repair_loading",
}


_TABLES = (CONFIG_REPAIRS, REPLACED, REPAIRS)


def _ours(name: str) -> Any:
    module, _, function = name.partition(".")
    return getattr(import_module(f"{__package__}.{module}"), function)


#: What the tables name.  Imported at once, as what cannot be keeps the patch from being applied; by
#: name, as the engine's modules import each other in circles.
_OURS: dict[str, Any] = {
    name: _ours(name) for name in sorted(name for table in _TABLES for name in table.values())
}


def engine_classes() -> list[tuple[str, str]]:
    """Module below ``sglang.srt`` and name of each class of the last two tables."""
    return [_engine_class(name) for name in (*REPLACED, *REPAIRS)]


def _engine_class(name: str) -> tuple[str, str]:
    module, _, cls = name.rpartition(".")
    return module if module.startswith("layers.") else f"models.{module}", cls


def repair_config(config: Any) -> None:
    """Apply the repair of :data:`CONFIG_REPAIRS` for this kind of model, if any."""
    if config.model_type in CONFIG_REPAIRS:
        _OURS[CONFIG_REPAIRS[config.model_type]](config)


@contextlib.contextmanager
def replaced(model_class: type[nn.Module]) -> Iterator[None]:
    """While a model of this class is built, classes of its module are those of :data:`REPLACED`."""
    module = sys.modules[model_class.__module__]
    with contextlib.ExitStack() as stack:
        for name, ours in REPLACED.items():
            where, cls = _engine_class(name)
            if module.__name__ == f"sglang.srt.{where}":
                _check_class(name)
                stack.callback(setattr, module, cls, getattr(module, cls))
                setattr(module, cls, _OURS[ours])
        yield


def repair(model: nn.Module, config: Any) -> None:
    """Apply every repair of :data:`REPAIRS` that the model's modules need, and override methods.

    Call as the model was built: under the same default dtype and device.
    """
    for module in list(model.modules()):
        for cls in type(module).__mro__:
            name = f"{cls.__module__}.{cls.__qualname__}"
            name = name.removeprefix("sglang.srt.").removeprefix("models.")
            if name in REPAIRS:
                _check_class(name)
                _OURS[REPAIRS[name]](module, config)
    for module in model.modules():  # those that repairs have put there too
        override(module)
    avoid_rotary_kernel(model)


@functools.cache
def _check_class(name: str) -> None:
    """Raise a GGUFError where the engine's class is like no known release's."""
    if fingerprints.changed([_engine_class(name)]) and os.environ.get(ALLOW_UNKNOWN) != "1":
        raise GGUFError(
            f"the engine's class {name} is repaired for GGUF, and differs from that of SGLang "
            f"{', '.join(fingerprints.known())}, which ascend-gguf knows",
            hint=f"Install one of these releases, or a newer ascend-gguf; {ALLOW_UNKNOWN}=1 loads "
            "it all the same, at your own risk.",
        )
