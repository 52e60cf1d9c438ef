"""Architectures of their own in a file that compute what a model of another name does.

The engine runs them with that model: its class knows pipeline stages, and packs every matrix.
"""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import Field, flag, scale
from ascend_gguf.architectures.llama import BODY
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import FIELDS, HEAD_SIZE, NEOX_BIASED_BODY, NEOX_BODY, mlp
from ascend_gguf.reader import GGUFFile

INTERNLM2 = Architecture(
    name="internlm2", model_type="llama", fields=FIELDS | HEAD_SIZE, tensors=BODY + mlp()
)

XVERSE = replace(INTERNLM2, name="xverse")


def _no_alibi(file: GGUFFile, attributes: Attributes) -> Attributes:
    # llama.cpp recognizes the 13B models by their depth, too.
    if attributes["num_hidden_layers"] == 40:
        raise file.error(
            "Baichuan 13B has ALiBi instead of RoPE, which SGLang's attention does not support",
            "block_count",
            found=40,
            expected="another number of layers, as in Baichuan 7B",
            hint=None,
        )
    return {}


BAICHUAN = replace(INTERNLM2, name="baichuan", derived=(_no_alibi,))

EXAONE = replace(INTERNLM2, name="exaone", tensors=NEOX_BODY + mlp())

#: Its text has one position in all sections of the rotary embedding.
PADDLEOCR = replace(EXAONE, name="paddleocr", reads=frozenset({"rope.dimension_sections"}))

CHATGLM = replace(
    INTERNLM2,
    name="chatglm",
    tensors=(
        *NEOX_BODY,
        per_layer("ffn_up.weight", "2*ffn hidden", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        per_layer("ffn_down.weight", "hidden ffn", "mlp.down_proj.weight"),
    ),
    # Neighbouring rows are turned together, in the file as in the model.
    constants={"rope_is_neox_style": False},
    rope=rope.partial,
    derived=(rope.partial_factor,),
)


def _half_width(file: GGUFFile, attributes: Attributes) -> Attributes:
    # Of gate and up together.
    return {"intermediate_size": attributes["intermediate_size"] // 2}


QWEN = replace(
    INTERNLM2,
    name="qwen",
    model_type="qwen2",
    tensors=NEOX_BIASED_BODY + mlp(),
    derived=(_half_width,),
)


def _minicpm_scales(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Those of the first models, of which old files say nothing."""
    hidden, layers = attributes["hidden_size"], attributes["num_hidden_layers"]
    usual = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / layers**0.5,
        "logits_scaling": hidden / 256,
        "attention_multiplier": (hidden // attributes["num_attention_heads"]) ** -0.5,
    }
    return usual | {name: attributes[name] for name in usual if name in attributes}


MINICPM = Architecture(
    name="minicpm",
    model_type="granite",
    fields=FIELDS
    | {
        "embedding_scale": scale("embedding_multiplier"),
        "residual_scale": scale("residual_multiplier"),
        "logit_scale": scale("logits_scaling"),
        "attention.scale": scale("attention_multiplier"),
    },
    tensors=BODY + mlp(),
    rope=rope.longrope_or_other,
    derived=(_minicpm_scales,),
)

#: That a model may have, each counted as often as it runs (llama.cpp's ``LLAMA_MAX_LAYERS``).
_MOST_LAYERS = 512


def _loops(file: GGUFFile, attributes: Attributes) -> Attributes:
    layers, loops = attributes["num_hidden_layers"], attributes["num_loops"]
    if layers * loops > _MOST_LAYERS:
        raise file.error(
            "value out of range",
            "num_loops",
            found=loops,
            expected=f"at most {_MOST_LAYERS // layers}, as in llama.cpp",
            hint=None,
        )
    return {}


#: Its layers run several times, each time with keys and values of their own.
NANBEIGE = replace(
    INTERNLM2,
    name="nanbeige",
    model_type="nanbeige",
    fields=FIELDS
    | HEAD_SIZE
    | {"num_loops": Field("num_loops"), "skip_loop_final_norm": flag("skip_loop_final_norm")},
    defaults={"num_loops": 1, "skip_loop_final_norm": False},
    derived=(_loops,),
    causal_lm="NanbeigeForCausalLM",
)

ARCHITECTURES = (INTERNLM2, XVERSE, BAICHUAN, EXAONE, PADDLEOCR, CHATGLM, QWEN, MINICPM, NANBEIGE)
