"""Grok 1 and 2: capped scores, norms before and after, experts alone or beside a dense network."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import Field
from ascend_gguf.architectures.layers import has_tensor
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import FIELDS, FRAME, HEAD_SIZE, attention, experts, mlp
from ascend_gguf.reader import GGUFFile


def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """YaRN with a bound of its own where the file has none (``load_arch_hparams``)."""
    found = rope.parameters(file, attributes)
    return {"beta_fast": 8.0} | found if found["rope_type"] == "yarn" else found


def _embedding_scale(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``embedding_multiplier_scale``: zero is none."""
    return {"embedding_multiplier_scale": attributes["embedding_multiplier_scale"] or 1.0}


ARCHITECTURES = (
    Architecture(
        name="grok",
        model_type="grok",
        causal_lm="Grok1ForCausalLM",
        fields=FIELDS
        | HEAD_SIZE
        | {
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": Field("moe_intermediate_size"),
            "embedding_scale": Field("embedding_multiplier_scale", float, 0),
            "logit_scale": Field("output_multiplier_scale", float, 0),
            "attention.output_scale": Field("attn_output_multiplier", float, 0),
            "attention.temperature_length": Field("attn_temperature_len", least=2),
            "attn_logit_softcapping": Field("attn_logit_softcapping", float, 0),
            "router_logit_softcapping": Field("router_logit_softcapping", float, 0),
            "final_logit_softcapping": Field("final_logit_softcapping", float, 0),
        },
        # Those of Grok 1.
        defaults={
            "embedding_multiplier_scale": 78.38367176906169,
            "output_multiplier_scale": 3**-0.5,
            "attn_output_multiplier": 128**-0.5,
            "attn_logit_softcapping": 30.0,
            "router_logit_softcapping": 30.0,
            "final_logit_softcapping": 0.0,
        },
        # xAI's own code divides weights of experts by no sum; llama.cpp does.
        fixed={
            "expert_gating_func": (1,),
            "expert_weights_norm": (False,),
            "hidden_activation": ("gelu", "gelu_pytorch_tanh"),
        },
        tensors=(
            *FRAME,
            per_layer("attn_norm.weight", "hidden", "pre_attn_norm.weight"),
            *attention(),
            per_layer("attn_output_norm.weight", "hidden", "post_attn_norm.weight"),
            per_layer("ffn_norm.weight", "hidden", "pre_moe_norm.weight"),
            *mlp("residual_moe"),
            *experts("block_sparse_moe", ("w1", "w3", "w2")),
            per_layer(
                "post_ffw_norm.weight",
                "hidden",
                "post_moe_norm.weight",
                unless="layer_output_norm.weight",
            ),
            # In files of 2024.
            per_layer("layer_output_norm.weight", "hidden", "post_moe_norm.weight", optional=True),
        ),
        rope=_rope,
        derived=(has_tensor("residual_moe", "blk.0.ffn_up.weight"), _embedding_scale),
    ),
)
