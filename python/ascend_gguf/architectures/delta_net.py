"""Qwen3-Next and Qwen3.5: a gated delta net in most layers, and full attention in the others.

Both are the engine's model of Qwen3.5, which has the projections of a net part by part, as files
have them: that of Qwen3-Next wants the rows of all parts mixed, head by head, and files hold the
parts in types of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Fields
from ascend_gguf.architectures.layers import expert_width
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    EMBEDDING,
    FIELDS,
    HEAD_SIZE,
    OFFSET,
    OFFSET_OUTPUT_NORM,
    OUTPUT,
    SOFTMAX_ROUTER,
    attention,
    experts,
    mlp,
    qk_norm,
)
from ascend_gguf.architectures.qwen import EXPERT_FIELDS, SHARED_EXPERT, SHARED_FIELDS, shared_width
from ascend_gguf.architectures.transforms import (
    Transform,
    apart,
    grouped_heads,
    log_of_minus,
    of_parts,
    then,
    with_channel,
)
from ascend_gguf.reader import GGUFFile

_STATE: Fields = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}


@reads("ssm.inner_size")
def _heads(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``linear_value_head_dim``, and that every key head has as many value heads.

    llama.cpp computes no values of another size than keys, but converts them.
    """
    inner = number(file, "ssm.inner_size", required=True)
    keys, values = attributes["linear_num_key_heads"], attributes["linear_num_value_heads"]
    if values % keys or inner % values:
        raise file.error(
            "the heads of linear attention cannot be of such sizes",
            "ssm.inner_size",
            found=f"{inner}, {keys} key heads, {values} value heads",
            expected="a multiple of the value heads, which are one of the key heads",
        )
    return {"linear_value_head_dim": inner // values}


@reads("full_attention_interval", "attention.recurrent_layers")
def _layer_types(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_types`` and ``full_attention_interval``, for every n-th layer.

    The engine knows no others: these are ``full_attention_layers`` too (``srt/models/qwen3_5.py``).
    """
    layers = attributes["num_hidden_layers"]
    full = _full_layers(file, layers)
    interval = full[0] + 1 if full else layers + 1
    found: Attributes = {}
    if full != list(range(interval - 1, layers, interval)):
        found, interval = {"full_attention_layers": full}, layers
    types = ["full_attention" if i in full else "linear_attention" for i in range(layers)]
    return {"layer_types": types, "full_attention_interval": interval, **found}


def _full_layers(file: GGUFFile, layers: int) -> list[int]:
    """As a list says, or else the layers' tensors, or else an interval, which may be a default."""
    recurrent = file.arch_field("attention.recurrent_layers", None)
    if recurrent is not None:
        return _not_recurrent(file, np.atleast_1d(recurrent), layers)
    full, linear = (
        [i for i in range(layers) if f"blk.{i}.{name}" in file.tensors]
        for name in ("attn_k_norm.weight", "ssm_a")
    )
    if sorted(full + linear) == list(range(layers)):
        return full
    interval = number(file, "full_attention_interval")
    interval = 4 if interval is None else interval
    return list(range(interval - 1, layers, interval))


def _not_recurrent(file: GGUFFile, recurrent: np.ndarray, layers: int) -> list[int]:
    blocks = file.metadata.get(f"{file.architecture}.block_count")
    if len(recurrent) in (layers, blocks) and np.isin(recurrent, (0, 1)).all():
        return np.flatnonzero(recurrent[:layers] == 0).tolist()
    raise file.error(
        "the model needs to know of each layer whether it has a recurrent state",
        "attention.recurrent_layers",
        found=f"{len(recurrent)} values: {recurrent.tolist()[:8]}",
        expected=f"true or false for each of {layers} layers",
    )


@reads("rope.dimension_sections")
def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Text has one position in all sections of the rotary embedding, but none in the fourth."""
    sections = file.arch_field("rope.dimension_sections", None)
    if sections is not None:
        values = np.atleast_1d(sections)
        if len(values) not in (3, 4) or values[3:].any() or values.dtype.kind not in "iu":
            raise file.error(
                "the rotary embedding has a part without positions",
                "rope.dimension_sections",
                found=values.tolist(),
                expected="three sizes, or a fourth that is zero",
            )
    return rope.partial(file, attributes)


def _linear(gguf: str, shape: str, *hf: str, **options: Any) -> Rename:
    names = (f"linear_attn.{name}" for name in hf)
    return per_layer(gguf, shape, *names, kind="linear", **options)


_QKV = "linear_k linear_k linear_v"
_QKV_ROWS, _Z_ROWS = _QKV.replace(" ", "+"), "linear_v"


def _delta_net(
    rows: Transform | None = None, numbers: Transform | None = None, merged: str | None = None
) -> tuple[Rename, ...]:
    """A net, but for what makes the decay and the gate of its update.

    Args:
        rows, numbers: undo what conversion did to the order of value heads, of which each has rows,
            or a number.
        merged: the tensor that some files have for the projections.
    """
    qkv = of_parts(_QKV, None, None, rows)
    decay = then(numbers, log_of_minus)
    return (
        _linear(
            "attn_qkv.weight", f"{_QKV_ROWS} hidden", "in_proj_qkv.weight", undo=qkv, unless=merged
        ),
        _linear(
            "attn_gate.weight", f"{_Z_ROWS} hidden", "in_proj_z.weight", undo=rows, unless=merged
        ),
        _linear(
            "ssm_conv1d.weight",
            f"{_QKV_ROWS} conv",
            "conv1d.weight",
            undo=then(qkv, with_channel),
            dense=True,
        ),
        _linear("ssm_dt.bias", "linear_heads", "dt_bias", undo=numbers, dense=True),
        _linear("ssm_a", "linear_heads", "A_log", undo=decay, dense=True),
        _linear("ssm_norm.weight", "linear_head", "norm.weight"),
        _linear("ssm_out.weight", "hidden linear_v", "out_proj.weight"),
    )


_GROUPED_NUMBERS = grouped_heads("1")

#: The matrix of the output takes heads in the file's order (``srt/models/qwen3_5.py``): its columns
#: cannot be moved, as a head may be half a block.
_QWEN35_NET = (
    *_delta_net(grouped_heads("linear_head"), _GROUPED_NUMBERS),
    _linear("ssm_beta.weight", "linear_heads hidden", "in_proj_b.weight", undo=_GROUPED_NUMBERS),
    _linear("ssm_alpha.weight", "linear_heads hidden", "in_proj_a.weight", undo=_GROUPED_NUMBERS),
)

#: Heads are in the model's order.  Older files have the four projections in one tensor.
_NEXT_NET = (
    *_delta_net(merged="ssm_in.weight"),
    _linear(
        "ssm_in.weight",
        f"{_QKV_ROWS}+{_Z_ROWS} hidden",
        "in_proj_qkv.weight",
        "in_proj_z.weight",
        rows=f"{_QKV_ROWS} {_Z_ROWS}",
        undo=apart(f"{_QKV} {_Z_ROWS}", "linear_key_heads"),
        optional=True,
    ),
    _linear(
        "ssm_ba.weight",
        "2*linear_heads hidden",
        "in_proj_b.weight",
        "in_proj_a.weight",
        undo=apart("linear_heads linear_heads", "linear_key_heads"),
    ),
)

_BODY = (
    EMBEDDING,
    OFFSET_OUTPUT_NORM,
    OUTPUT,
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight", **OFFSET),
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight", **OFFSET),
    # Beside each query is what its result is gated by.
    *attention(q_rows="2*q", kind="full"),
    *qk_norm(kind="full", **OFFSET),
)
_FIELDS = FIELDS | HEAD_SIZE | _STATE
# The engine reads the factor from the configuration itself.
_DERIVED = (_heads, _layer_types, rope.partial_factor)
#: For the matrix of the output.
_TILED = {"value_heads_are_tiled": True}


def _mixture(name: str, net: tuple[Rename, ...], **constants: Any) -> Architecture:
    """A model whose layers have experts and a shared one."""
    return Architecture(
        name=name,
        model_type="qwen3_5_moe_text",
        fields=_FIELDS | EXPERT_FIELDS | SHARED_FIELDS,
        fixed=SOFTMAX_ROUTER,
        tensors=_BODY + net + experts() + SHARED_EXPERT,
        constants={"norm_topk_prob": True} | constants,
        rope=_rope,
        derived=(*_DERIVED, expert_width, shared_width),
    )


ARCHITECTURES = (
    Architecture(
        name="qwen35",
        model_type="qwen3_5_text",
        fields=_FIELDS,
        tensors=_BODY + _QWEN35_NET + mlp(),
        constants=_TILED,
        rope=_rope,
        derived=_DERIVED,
    ),
    _mixture("qwen35moe", _QWEN35_NET, **_TILED),
    _mixture("qwen3next", _NEXT_NET),
)
