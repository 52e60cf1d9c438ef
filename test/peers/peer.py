"""A model for llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A model for the converter.

    Args:
        model_type: transformers'.
        sizes: of its configuration, beside those of :mod:`peers.convert`; of a vision model, of
            its text model.
        vision: sizes of the encoder of pictures, if it is a vision model.
        transposed: ends of the names of matrices that published checkpoints have transposed, and
            transformers, which takes both, does not write so.
        fuse_qkv: an option of the converter.  It has one for gate and up of experts too, and no
            architecture of the table for which it works.
        drop: keys of the metadata, below the architecture's name, to leave out.
        add: the same, to write where the converter does not.
        npu_dtype: in which an NPU computes it.
        reranker: the converter makes a reranker of it.
        pooling: it gives embeddings, of all tokens or the first one: ``mean_tokens``,
            ``cls_token``.
        dense: rows of a layer behind the pooling, which another follows; 0 for none.
        refused: the devices that it does not run on.
        drafts: its last layer is one that predicts a token more.
    """

    model_type: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    fuse_qkv: bool = False
    drop: tuple[str, ...] = ()
    add: Mapping[str, Any] = field(default_factory=dict)
    npu_dtype: str = "float16"
    reranker: bool = False
    pooling: str = ""
    dense: int = 0
    refused: tuple[str, ...] = ()
    drafts: bool = False


def rope(theta: float = 40000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

#: Sizes of an encoder of pictures, in the words of several models.
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}


def sections(*sections: int) -> dict[str, Any]:
    return rope(mrope_section=list(sections))


PIXTRAL = VISION | {
    "model_type": "pixtral",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
