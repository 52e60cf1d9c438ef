"""Models with LayerNorm, most of them of 2023 and before."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename
from ascend_gguf.architectures.fields import fraction, scale
from ascend_gguf.architectures.layers import has_tensor, no_grouped_heads
from ascend_gguf.architectures.llama import ATTENTION as INTERLEAVED_ATTENTION
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    ATTENTION,
    BIASED_NORMS,
    EMBEDDING,
    FIELDS,
    FRAME,
    LAYER_NORM_EPSILON,
    LAYER_NORM_FIELDS,
    OUTPUT,
    OUTPUT_NORM_BIAS,
    PLAIN_FIELDS,
    SOFTMAX_ROUTER,
    TIED_FRAME,
    attention,
    experts,
    linear,
    mlp,
)
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile


def _inner_width(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"n_inner": attributes["intermediate_size"]}


def _multi_query(file: GGUFFile, attributes: Attributes) -> Attributes:
    """StarCoder's one KV head, or as many as query heads."""
    if attributes["num_key_value_heads"] == 1:
        return {"multi_query": True}
    return no_grouped_heads(file, attributes) | {"multi_query": False}


_OF_12B = "blk.0.attn_q_norm.weight"


def _not_12b(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Nothing; refuse StableLM 2 12B, of which the engine's class knows neither."""
    norms = [f"blk.0.{name}_norm.weight" in file.tensors for name in ("attn", "ffn")]
    if _OF_12B in file.tensors or norms == [True, False]:
        raise GGUFError(
            "SGLang's StableLM has no norms of heads, and attention before the feed-forward "
            "network, not beside it: StableLM 2 12B is not supported",
            file=file.files[0],
            tensor=_OF_12B if _OF_12B in file.tensors else "blk.0.attn_norm.weight",
            expected="StableLM 3B or 2 1.6B",
        )
    return {}


STABLELM = Architecture(
    name="stablelm",
    model_type="stablelm",
    fields=LAYER_NORM_FIELDS,
    # Which one it is shows in its tensors: that of 12B has no norm before the feed-forward network.
    fixed={"use_parallel_residual": (False, True)},
    tensors=(*FRAME, OUTPUT_NORM_BIAS, *BIASED_NORMS, *ATTENTION, *mlp()),
    constants={"use_parallel_residual": False, "qk_layernorm": False},
    rope=rope.partial,
    derived=(_not_12b, rope.partial_factor),
)

#: Computes what StableLM does, but for the share of a head that RoPE covers.
ORION = Architecture(
    name="orion",
    model_type="stablelm",
    fields=LAYER_NORM_FIELDS,
    tensors=STABLELM.tensors,
    constants={**STABLELM.constants, "partial_rotary_factor": 1.0},
    rope=rope.partial,
)

OLMO = Architecture(
    name="olmo",
    model_type="olmo",
    fields=PLAIN_FIELDS | {"attention.clamp_kqv": scale("clip_qkv")},
    fixed={LAYER_NORM_EPSILON: (1e-5,)},
    # Its norms have no weights.
    tensors=(EMBEDDING, OUTPUT, *INTERLEAVED_ATTENTION, *mlp()),
    derived=(no_grouped_heads,),
)

PHI2 = Architecture(
    name="phi2",
    model_type="phi",
    fields=LAYER_NORM_FIELDS,
    tensors=(
        EMBEDDING,
        Rename("output_norm.weight", "hidden", "model.final_layernorm.weight"),
        Rename("output_norm.bias", "hidden", "model.final_layernorm.bias"),
        OUTPUT,
        Rename("output.bias", "vocab", "lm_head.bias"),
        # Attention and the feed-forward network have the same input.
        *linear("attn_norm", "hidden", "", "input_layernorm"),
        *attention(biased=True, output="self_attn.dense", output_biased=True),
        *linear("ffn_up", "ffn", "hidden", "mlp.fc1"),
        *linear("ffn_down", "hidden", "ffn", "mlp.fc2"),
    ),
    rope=rope.partial,
    derived=(no_grouped_heads, rope.partial_factor, _inner_width),
)

PHIMOE = Architecture(
    name="phimoe",
    model_type="phimoe",
    causal_lm="PhiMoEForCausalLM",
    fields=FIELDS | {"expert_count": "num_local_experts"},
    # Which it was trained with: the softmax of two, each beside those that are far less.
    fixed=SOFTMAX_ROUTER | {"expert_used_count": (2,)},
    constants={"num_experts_per_tok": 2},
    tensors=(
        *TIED_FRAME,
        replace(OUTPUT, optional=False),
        OUTPUT_NORM_BIAS,
        Rename("output.bias", "vocab", "lm_head.bias"),
        *BIASED_NORMS,
        *ATTENTION,
        *experts("block_sparse_moe", ("w1", "w3", "w2")),
    ),
    rope=rope.longrope,
    derived=(has_tensor("attention_bias", "blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),),
)

_GPT_TENSORS = (
    Rename("token_embd.weight", "vocab hidden", "transformer.wte.weight"),
    Rename("position_embd.weight", "positions hidden", "transformer.wpe.weight"),
    *(
        Rename(f"output_norm.{kind}", "hidden", f"transformer.ln_f.{kind}")
        for kind in ("weight", "bias")
    ),
    *(
        rule.renamed(lambda name: name.replace("model.layers", "transformer.h"))
        for gguf, rows, columns, hf in (
            ("attn_norm", "hidden", "", "ln_1"),
            ("attn_qkv", "q+2*kv", "hidden", "attn.c_attn"),
            ("attn_output", "hidden", "q", "attn.c_proj"),
            ("ffn_norm", "hidden", "", "ln_2"),
            ("ffn_up", "ffn", "hidden", "mlp.c_fc"),
            ("ffn_down", "hidden", "ffn", "mlp.c_proj"),
        )
        for rule in linear(gguf, rows, columns, hf)
    ),
)

GPT2 = Architecture(
    name="gpt2",
    model_type="gpt2",
    fields=PLAIN_FIELDS | {LAYER_NORM_EPSILON: fraction("layer_norm_epsilon")},
    tensors=(*_GPT_TENSORS, OUTPUT),
    rope=rope.absent,
    derived=(no_grouped_heads, _inner_width),
)

STARCODER = replace(
    GPT2, name="starcoder", model_type="gpt_bigcode", derived=(_multi_query, _inner_width)
)

ARCHITECTURES = (STABLELM, ORION, OLMO, PHI2, PHIMOE, GPT2, STARCODER)
