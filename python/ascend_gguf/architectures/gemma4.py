"""Gemma 4: heads of one size with a window and of another without, and layers that share keys.

The configuration is in the engine's terms: ``head_dim`` and ``num_key_value_heads`` are of layers
that attend to everything, ``swa_head_dim`` and ``swa_num_key_value_heads`` of those with a window.
"""

from __future__ import annotations

from collections.abc import Iterator

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import count, length, scale
from ascend_gguf.architectures.layers import (
    FULL,
    SLIDING,
    each_layer,
    of_each_type,
    own_sizes,
    sliding_unless,
)
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    FIELDS,
    HEAD_SIZE,
    OWN_KV_HEADS,
    OWN_WIDTHS,
    SOFTMAX_ROUTER,
    TIED_FRAME,
    experts,
    mlp,
)
from ascend_gguf.architectures.transforms import first_rows
from ascend_gguf.errors import CONVERT_AGAIN
from ascend_gguf.reader import GGUFFile

_PER_LAYER_EMBEDDING = "per_layer_token_embd.weight"

#: What a frequency is divided by to stand still: anything as large.
_STILL = 1e20


def _attention(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Heads by the type of layer, and which layers have keys and values of their own."""
    types, layers = attributes["layer_types"], attributes["num_hidden_layers"]
    shared = attributes["num_kv_shared_layers"]
    if types[-1] != FULL or not set(types[layers - shared :]) <= set(types[: layers - shared]):
        raise file.error(
            "the layers cannot attend so",
            "attention.sliding_window_pattern",
            found=f"{types.count(SLIDING)} of {layers} layers with a window, {shared} that share "
            "keys",
            expected="none in the last layer, and each layer that shares keys behind another of "
            "its type",
        )
    heads = of_each_type(file, attributes, "num_key_value_heads", "attention.head_count_kv")
    head = attributes["head_dim"]
    swa_head = attributes.get("swa_head_dim", head)
    full = [layer for layer in range(layers - shared) if types[layer] == FULL]
    has_v = [{f"blk.{n}.attn_{part}.weight" for part in ("v", "qkv")} for n in full]
    head_sizes = [head if kind == FULL else swa_head for kind in types]
    return {
        **own_sizes(attributes, head_dim=head_sizes, v_head_dim=head_sizes),
        "num_key_value_heads": heads[FULL],
        "swa_num_key_value_heads": heads[SLIDING],
        "swa_head_dim": swa_head,
        "v_head_dim": head,
        "swa_v_head_dim": swa_head,
        "attention_k_eq_v": not any(names & file.tensors.keys() for names in has_v),
        # Not transformers' terms for the same.
        "per_layer_config": None,
    }


def _feed_forward(file: GGUFFile, attributes: Attributes) -> Attributes:
    """The width of all layers, or twice as much in those that share keys."""
    layers = attributes["num_hidden_layers"]
    own = layers - attributes["num_kv_shared_layers"]
    widths = each_layer(attributes, "intermediate_size")
    wide = widths == [widths[0]] * own + [2 * widths[0]] * (layers - own) and own < layers
    if not wide and widths != [widths[0]] * layers:
        raise file.error(
            "the widths differ",
            "feed_forward_length",
            found=f"{widths!s:.80}",
            expected=f"{widths[0]} for all layers, or twice that for those that share keys",
        )
    return {"intermediate_size": widths[0], "use_double_wide_mlp": wide}


def embedding_rows(file: GGUFFile) -> Attributes:
    """``vocab_size_per_layer_input``: rows of the embedding of what each layer adds."""
    embedding = file.tensors.get(_PER_LAYER_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        return {}
    return {"vocab_size_per_layer_input": embedding.shape[0]}


def _embeddings(file: GGUFFile, attributes: Attributes) -> Attributes:
    """:func:`embedding_rows`, and whether there are experts."""
    return embedding_rows(file) | {"enable_moe_block": "num_experts" in attributes}


@reads("rope.freq_base_swa")
def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Plain with a window; without one, of the first frequencies alone, by the file's factors."""
    if scaling := rope.scaling_of(file):
        found = scaling["factor"]
        raise file.error(
            "Gemma 4 scales no frequencies", "rope.scaling.factor", found=found, expected="none"
        )
    full = rope.unscaled(file)
    theta = number(file, "rope.freq_base_swa", float)
    sliding = full | ({} if theta is None else {"rope_theta": theta})
    full |= {"rope_type": "proportional", "partial_rotary_factor": 1.0}
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        factors = tensor.array().ravel()
        turned = int((factors == 1).sum())
        if 2 * len(factors) != attributes["head_dim"] or not (
            (factors[:turned] == 1).all() and (factors[turned:] >= _STILL).all()
        ):
            raise tensor.error(
                "the factors of the rotary embedding are not Gemma 4's",
                found=f"{len(factors)} factors from {factors.min():g} to {factors.max():g}",
                expected=f"{attributes['head_dim'] // 2}: ones, then {_STILL:g} or more",
                hint=CONVERT_AGAIN,
            )
        full["partial_rotary_factor"] = turned / len(factors)
    return {SLIDING: sliding, FULL: full}


def attention_by_layer() -> Iterator[Rename]:
    """Attention, whose sizes are those of the layer."""
    fused, names = "attn_qkv.weight", [f"self_attn.{part}_proj.weight" for part in "qkv"]
    yield per_layer("attn_q.weight", "q hidden", names[0], unless=fused)
    yield per_layer("attn_k.weight", "kv hidden", names[1], unless=fused, kind="own_kv")
    own_v = "own_kv own_v"
    yield per_layer("attn_v.weight", "kv hidden", names[2], unless=fused, kind=own_v)
    yield per_layer(fused, "q+2*kv hidden", *names, rows="q kv kv", optional=True, kind=own_v)
    yield per_layer("attn_output.weight", "hidden q", "self_attn.o_proj.weight")
    yield per_layer("attn_q_norm.weight", "head", "self_attn.q_norm.weight")
    yield per_layer("attn_k_norm.weight", "head", "self_attn.k_norm.weight", kind="own_kv")
    yield per_layer(
        fused, "q+2*kv hidden", names[0], undo=first_rows("q"), optional=True, kind="shared_kv"
    )
    for part, shape in (("k", "kv hidden"), ("v", "kv hidden"), ("k_norm", "head")):
        # Some files have them, and nothing takes them.
        name = f"blk.{{layer}}.attn_{part}.weight"
        yield Rename(name, shape, (), optional=True, kind="shared_kv")


#: Before and behind attention and the feed-forward network.
BLOCK_NORMS = tuple(
    per_layer(f"{gguf}.weight", "hidden", f"{hf}.weight")
    for gguf, hf in {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }.items()
)
_EXPERT_NORMS = {
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}


def _experts() -> Iterator[Rename]:
    """Beside the feed-forward network; what each gives is scaled by the scale of its matrix."""
    yield from experts("", router="router.proj.weight", kind="sparse")
    yield per_layer("ffn_gate_inp.scale", "hidden", "router.scale", kind="sparse")
    for gguf, hf in _EXPERT_NORMS.items():
        yield per_layer(f"{gguf}.weight", "hidden", f"{hf}.weight", kind="sparse")


def per_layer_inputs() -> Iterator[Rename]:
    """What each layer adds for a token, of an embedding of its own."""
    kind, model = "per_layer", "model."
    table, projection = "per_layer_vocab layers*per_layer", "layers*per_layer hidden"
    yield Rename(_PER_LAYER_EMBEDDING, table, f"{model}embed_tokens_per_layer.weight", kind=kind)
    name = f"{model}per_layer_model_projection.weight"
    yield Rename("per_layer_model_proj.weight", projection, name, kind=kind)
    name = f"{model}per_layer_projection_norm.weight"
    yield Rename("per_layer_proj_norm.weight", "per_layer", name, kind=kind)
    name = "per_layer_input_gate.weight"
    yield per_layer("inp_gate.weight", "per_layer hidden", name, kind=kind)
    yield per_layer("proj.weight", "hidden per_layer", "per_layer_projection.weight", kind=kind)
    yield per_layer("post_norm.weight", "hidden", "post_per_layer_input_norm.weight", kind=kind)


ARCHITECTURES = (
    Architecture(
        name="gemma4",
        model_type="gemma4_text",
        fields=FIELDS
        | HEAD_SIZE
        | OWN_KV_HEADS
        | OWN_WIDTHS
        | {
            "attention.sliding_window": "sliding_window",
            "attention.key_length_swa": length("swa_head_dim"),
            "attention.shared_kv_layers": count("num_kv_shared_layers"),
            "embedding_length_per_layer_input": count("hidden_size_per_layer_input"),
            "final_logit_softcapping": scale("final_logit_softcapping"),
            "expert_count": length("num_experts"),
            "expert_used_count": length("top_k_experts"),
            "expert_feed_forward_length": length("moe_intermediate_size"),
        },
        defaults={
            "final_logit_softcapping": None,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
        },
        fixed=SOFTMAX_ROUTER | {"hidden_activation": ("gelu_pytorch_tanh",)},
        tensors=(
            *TIED_FRAME,
            *BLOCK_NORMS,
            per_layer("layer_output_scale.weight", "1", "layer_scalar", optional=True),
            *attention_by_layer(),
            *mlp(),
            *_experts(),
            *per_layer_inputs(),
        ),
        rope=_rope,
        derived=(sliding_unless(6), _attention, _feed_forward, _embeddings),
    ),
)
