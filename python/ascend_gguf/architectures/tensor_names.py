"""What the name of a tensor says of it, whatever the architecture."""

from __future__ import annotations

import re
from typing import Any

from ascend_gguf.reader import GGUFTensor

#: Tensors that any file may hold and no model needs: their content is in the configuration.
_IGNORED = re.compile(
    r"rope_(freqs|factors_long|factors_short)\.weight|blk\.\d+\.attn_rot_embd\.weight"
    # For kernels of other programs that quantize activations too.
    r"|.+\.input_scale"
)

#: Tensors of image, video and audio encoders, which some files have beside the text model: names of
#: ``clip-impl.h`` of llama.cpp and of Hugging Face's checkpoints.
_ENCODERS = re.compile(
    r"(v|a|mm|resampler|adapter|vision_(tower|model)|visual|audio_tower|multi_modal_projector)\..+"
)

#: Heads of rerankers and classifiers, instead of the output matrix or beside it.
_HEAD = re.compile(r"cls(\.(output|norm))?\.(weight|bias)")


def is_of_encoder(tensor_name: str) -> bool:
    """True for a tensor of an image, video or audio encoder."""
    return _ENCODERS.fullmatch(tensor_name) is not None


def is_of_head(tensor_name: str) -> bool:
    """True for a tensor of a reranker's or classifier's head."""
    return _HEAD.fullmatch(tensor_name) is not None


def scale_name(weight_name: str) -> str:
    """The name of the tensor that scales a weight: one number, or one per expert.

    Source: llama.cpp ``llama_model::load_tensors``; files of NVFP4 have them.
    """
    return weight_name.removesuffix(".weight") + ".scale"


def is_left_out(tensor: GGUFTensor, config: Any) -> bool:
    """True for a tensor that text generation does not need."""
    return (
        _IGNORED.fullmatch(tensor.name) is not None
        or is_of_encoder(tensor.name)
        or predicts_further_tokens(tensor, config)
    )


def predicts_further_tokens(tensor: GGUFTensor, config: Any) -> bool:
    """True for a tensor of a multi-token prediction layer, which follows the model's own layers."""
    layer, _ = split_layer(tensor.name)
    layers = config.num_hidden_layers
    extra = getattr(config, "num_nextn_predict_layers", None) or 0
    return layer is not None and layers <= int(layer) < layers + extra


def split_layer(tensor_name: str) -> tuple[str | None, str]:
    """``blk.7.attn_q.weight`` to ``("7", "blk.{layer}.attn_q.weight")``.

    Python reads no number of thousands of digits, and no model has so many layers.
    """
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,99})\.(.+)", tensor_name)
    return (match[1], f"blk.{{layer}}.{match[2]}") if match else (None, tensor_name)
