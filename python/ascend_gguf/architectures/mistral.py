"""Ministral 3, Devstral 2 and other models of Mistral whose attention has a temperature.

Mistral's models before have the architecture of Llama.
"""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture
from ascend_gguf.architectures.llama import BODY
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import FIELDS, HEAD_SIZE, mlp
from ascend_gguf.reader import GGUFFile


def _original_context(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Tokens before queries grow; the engine looks for it beside the RoPE parameters."""
    found = number(file, "rope.scaling.original_context_length")
    return {"original_max_position_embeddings": found or attributes["max_position_embeddings"]}


@reads("attention.temperature_scale", "rope.scaling.yarn_log_multiplier")
def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """YaRN with a logarithm for all dimensions, and the temperature, which is of Llama 4."""
    found = rope.parameters(file, attributes) | _original_context(file, attributes)
    beta = number(file, "attention.temperature_scale", float, least=0)
    if beta:
        found["llama_4_scaling_beta"] = beta
    of_all = number(file, "rope.scaling.yarn_log_multiplier", float, least=0)
    if not of_all or found["rope_type"] != "yarn":
        return found
    rope.refuse_attention_factor(file, found)
    return found | {"mscale": 1.0, "mscale_all_dim": of_all}


MISTRAL3 = Architecture(
    name="mistral3",
    model_type="ministral3",
    fields=FIELDS | HEAD_SIZE,
    tensors=BODY + mlp(),
    rope=_rope,
    derived=(_original_context,),
)

ARCHITECTURES = (MISTRAL3,)
