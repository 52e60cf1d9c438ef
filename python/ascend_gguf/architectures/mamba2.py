"""Mamba-2, and its layer, which several architectures have."""

from __future__ import annotations

from typing import Any

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Field, Fields
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import OUTPUT, RMS_NORM_EPSILON, linear
from ascend_gguf.architectures.transforms import flat, log_of_minus, then, with_channel
from ascend_gguf.reader import GGUFFile

STATE: Fields = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
}
#: A layer's linear layers: the file's name to the model's.
_PROJECTIONS = {"ssm_in": "in_proj", "ssm_out": "out_proj"}


def inner_size(file: GGUFFile, heads: int, groups: int, hidden: int = 1) -> int:
    """The width of all heads together.

    Args:
        hidden: what it is a multiple of, besides the number of heads.

    Raises:
        GGUFError: it is not, or the groups are not of equal size.
    """
    inner = number(file, "ssm.inner_size", required=True)
    if inner % heads or heads % groups or inner % hidden:
        also = f", and of {hidden}" if hidden > 1 else ""
        raise file.error(
            "the heads of Mamba-2 cannot be of such sizes",
            "ssm.inner_size",
            found=f"{inner}, {heads} heads in {groups} groups",
            expected=f"a multiple of the heads, which are one of the groups{also}",
        )
    return inner


def biases(file: GGUFFile, convolution: str, projections: str) -> Attributes:
    """Whether the convolution has a bias, and any projection; and which projections have one."""

    def has(part: str) -> bool:
        return any(name.endswith(f".{part}.bias") for name in file.tensors)

    biased = [hf for gguf, hf in _PROJECTIONS.items() if has(gguf)]
    return {convolution: has("ssm_conv1d"), projections: bool(biased), "biased": biased}


@reads("ssm.inner_size")
def state(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``mamba_d_head`` and ``mamba_expand``, and which parts have a bias."""
    heads, hidden = attributes["mamba_n_heads"], attributes["hidden_size"]
    inner = inner_size(file, heads, attributes["mamba_n_groups"], hidden)
    return {
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // hidden,
        **biases(file, "mamba_conv_bias", "mamba_proj_bias"),
    }


def mixer(module: str, kind: str) -> tuple[Rename, ...]:
    """The layer of Mamba-2, in blocks of a kind.

    Args:
        module: its name in a layer of the model.
    """

    def part(gguf: str, shape: str, hf: str, **options: Any) -> Rename:
        return per_layer(gguf, shape, f"{module}.{hf}", kind=kind, **options)

    def projection(gguf: str, rows: str, columns: str) -> tuple[Rename, ...]:
        name = f"{module}.{_PROJECTIONS[gguf]}"
        return linear(gguf, rows, columns, name, kind, biased=False)

    mixed = "ssm_inner+ssm_bc"
    return (
        *projection("ssm_in", "2*ssm_inner+ssm_bc+ssm_heads", "hidden"),
        part(
            "ssm_conv1d.weight",
            f"{mixed} ssm_kernel",
            "conv1d.weight",
            undo=with_channel,
            dense=True,
        ),
        part("ssm_conv1d.bias", mixed, "conv1d.bias", optional=True),
        part("ssm_dt.bias", "ssm_heads", "dt_bias", dense=True),
        part("ssm_a", "ssm_heads 1", "A_log", undo=then(flat, log_of_minus), dense=True),
        part("ssm_d", "ssm_heads 1", "D", undo=flat, dense=True),
        per_layer(
            "ssm_norm.weight",
            "ssm_groups ssm_group",
            f"{module}.norm.weight",
            undo=flat,
            dense=True,
            kind=f"{kind} normed_state",
        ),
        *projection("ssm_out", "hidden", "ssm_inner"),
    )


@reads("ssm.inner_size")
def _alone(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``head_dim`` and the width of all heads, and which parts have a bias."""
    heads, hidden = attributes["num_heads"], attributes["hidden_size"]
    inner = inner_size(file, heads, attributes["n_groups"], hidden)
    return {
        "head_dim": inner // heads,
        "expand": inner // hidden,
        "intermediate_size": inner,
        **biases(file, "use_conv_bias", "use_bias"),
        # Which it has none of, and the engine divides by.
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


ARCHITECTURES = (
    Architecture(
        name="mamba2",
        model_type="mamba2",
        fields={
            "block_count": "num_hidden_layers",
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            RMS_NORM_EPSILON: Field("layer_norm_epsilon", float, 0),
            "ssm.conv_kernel": "conv_kernel",
            "ssm.state_size": "state_size",
            "ssm.group_count": "n_groups",
            "ssm.time_step_rank": "num_heads",
        },
        fixed={"attention.head_count": (0,), "feed_forward_length": (0,)},
        tensors=(
            Rename("token_embd.weight", "vocab hidden", "model.embed_tokens.weight"),
            Rename("output_norm.weight", "hidden", "model.norm.weight"),
            OUTPUT,
            per_layer("attn_norm.weight", "hidden", "norm.weight"),
            *mixer("mixer", ""),
        ),
        constants={"rms_norm": True},
        rope=rope.absent,
        derived=(_alone,),
    ),
)
