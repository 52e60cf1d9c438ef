"""Gemma 3n: several streams beside each other (AltUp), of which a layer computes one."""

from __future__ import annotations

import math

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Field, count, scale
from ascend_gguf.architectures.gemma4 import (
    BLOCK_NORMS,
    attention_by_layer,
    embedding_rows,
    per_layer_inputs,
)
from ascend_gguf.architectures.layers import sliding_unless
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import FIELDS, HEAD_SIZE, TIED_FRAME, mlp
from ascend_gguf.errors import CONVERT_AGAIN
from ascend_gguf.reader import GGUFFile

#: Layers with keys of their own, and what the first layers leave out, in files that do not say
#: (``load_arch_hparams`` and ``n_layer_sparsity`` of llama.cpp).
_OWN_KV = 20
_SPARSE_LAYERS, _SPARSITY = 10, 0.95


@reads("attention.shared_kv_layers")
def _shared_kv(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``num_kv_shared_layers``: each attends to the keys of the last layer of its type."""
    layers, types = attributes["num_hidden_layers"], attributes["layer_types"]
    shared = number(file, "attention.shared_kv_layers", least=0)
    shared = max(0, layers - _OWN_KV) if shared is None else shared
    own = max(0, layers - shared)
    if not set(types[own:]) <= set(types[:own]):
        raise file.error(
            "the layers cannot attend so",
            "attention.shared_kv_layers",
            found=f"{shared} of {layers}",
            expected="each layer that shares keys behind another of its type",
        )
    return {"num_kv_shared_layers": shared}


@reads("activation_sparsity_scale")
def _sparsity(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``activation_sparsity_pattern``: of each layer, how much of a normal distribution is zero.

    The file has the quantile: minus infinity where all is kept.
    """
    layers = attributes["num_hidden_layers"]
    quantiles = file.arch_field("activation_sparsity_scale", None)
    if quantiles is None:
        sparse = min(_SPARSE_LAYERS, layers)
        return {"activation_sparsity_pattern": [_SPARSITY] * sparse + [0.0] * (layers - sparse)}
    values = np.atleast_1d(quantiles)
    if len(values) != layers or values.dtype.kind != "f" or not (values < math.inf).all():
        raise file.error(
            "invalid values",
            "activation_sparsity_scale",
            found=f"{values.tolist()!s:.80}",
            expected=f"a number for each of {layers} layers",
            hint=CONVERT_AGAIN,
        )
    shares = [0.5 * math.erfc(-value / math.sqrt(2)) for value in values.tolist()]
    return {"activation_sparsity_pattern": shares}


def _sizes(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``laurel_rank``, which no key says, and the rows of the embedding of what layers add."""
    active, streams = attributes["altup_active_idx"], attributes["altup_num_inputs"]
    if active >= streams:
        raise file.error(
            "value out of range", "altup.active_idx", found=active, expected=f"less than {streams}"
        )
    left = file.tensors.get("blk.0.laurel_l.weight")
    if left is None or len(left.shape) != 2:  # which is told when all tensors are looked at
        return embedding_rows(file)
    return embedding_rows(file) | {"laurel_rank": left.shape[0]}


_STREAMS = (
    *(
        Rename(f"{gguf}.weight", "altup_others hidden hidden", f"model.{hf}.{{expert}}.weight")
        for gguf, hf in (
            ("altup_proj", "altup_projections"),
            ("altup_unembd_proj", "altup_unembed_projections"),
        )
    ),
    *(
        per_layer(f"altup_{gguf}.weight", shape, f"altup.{hf}")
        for gguf, shape, hf in (
            ("correct_coef", "altup altup", "correction_coefs.weight"),
            ("predict_coef", "altup*altup altup", "prediction_coefs.weight"),
            ("router", "altup hidden", "modality_router.weight"),
            ("router_norm", "hidden", "router_norm.weight"),
            ("correct_scale", "hidden", "correct_output_scale"),
        )
    ),
    per_layer("laurel_l.weight", "laurel hidden", "laurel.linear_left.weight"),
    per_layer("laurel_r.weight", "hidden laurel", "laurel.linear_right.weight"),
    per_layer("laurel_post_norm.weight", "hidden", "laurel.post_laurel_norm.weight"),
)

ARCHITECTURES = (
    Architecture(
        name="gemma3n",
        model_type="gemma3n_text",
        fields=FIELDS
        | HEAD_SIZE
        | {
            "attention.sliding_window": "sliding_window",
            "embedding_length_per_layer_input": Field("hidden_size_per_layer_input"),
            "altup.num_inputs": Field("altup_num_inputs"),
            "altup.active_idx": count("altup_active_idx"),
            "final_logit_softcapping": scale("final_logit_softcapping"),
        },
        defaults={
            "final_logit_softcapping": 30.0,
            "altup_num_inputs": 4,
            "altup_active_idx": 0,
            "hidden_size_per_layer_input": 256,
        },
        fixed={"hidden_activation": ("gelu_pytorch_tanh",)},
        tensors=(
            *TIED_FRAME,
            *BLOCK_NORMS,
            *attention_by_layer(),
            *mlp(),
            *per_layer_inputs(),
            *_STREAMS,
        ),
        rope=rope.by_layer_type(10000.0),
        derived=(sliding_unless(5), _shared_kv, _sparsity, _sizes),
    ),
)
