"""MiniMax M2, and M3, whose layers with experts attend to blocks that an indexer chooses."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Field, count, flag, scale
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    FIELDS,
    HEAD_SIZE,
    JOINT_QK_NORM,
    NEOX_BODY,
    QK_NORM,
    SIGMOID,
    experts,
    mlp,
    router_bias,
    shared_expert,
    without,
)
from ascend_gguf.reader import GGUFFile

_FIELDS = HEAD_SIZE | {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "rope.dimension_count": Field("rotary_dim"),
}
_ROUTER = {"use_qk_norm": True, "use_routing_bias": True, "scoring_func": "sigmoid"}
_MODULE = "block_sparse_moe"
_PROJECTIONS = ("w1", "w3", "w2")


def _rotated(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"rotary_dim": attributes.get("rotary_dim", attributes["head_dim"])}


MINIMAX_M2 = Architecture(
    name="minimax-m2",
    model_type="minimax_m2",
    fields=FIELDS | _FIELDS,
    fixed={"expert_gating_func": (SIGMOID,), "expert_weights_norm": (True,)},
    tensors=(
        *NEOX_BODY,
        *JOINT_QK_NORM,
        *experts(_MODULE, _PROJECTIONS),
        router_bias(f"{_MODULE}.e_score_correction_bias", kind=""),
    ),
    rope=rope.partial,
    constants=_ROUTER,
    derived=(_rotated,),
)


def _chosen(file: GGUFFile, attributes: Attributes) -> Attributes:
    """What layers with experts attend to: blocks of tokens, so many of so many tokens."""
    layers, dense = attributes["num_hidden_layers"], attributes["first_k_dense_replace"]
    chosen = attributes["index_topk_blocks"] * attributes["index_block_size"]
    return {
        "moe_layer_freq": [int(layer >= dense) for layer in range(layers)],
        "sparse_attention_size": chosen if dense < layers else None,
    }


def _indexer(name: str, shape: str) -> Rename:
    """A tensor that chooses what to attend to."""
    return per_layer(f"indexer.{name}.weight", shape, optional=True, kind="sparse")


#: Up to ``sparse_attention_size`` tokens of context the chosen blocks are all that there are.
MINIMAX_M3 = Architecture(
    name="minimax-m3",
    model_type="minimax_m3",
    fields=without(FIELDS, "feed_forward_length")
    | _FIELDS
    | {
        "feed_forward_length": "dense_intermediate_size",
        "expert_feed_forward_length": "intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_scale": scale("routed_scaling_factor"),
        "expert_weights_norm": flag("norm_topk_prob"),
        "leading_dense_block_count": count("first_k_dense_replace"),
        "attention.indexer.head_count": "indexer_heads",
        "attention.indexer.key_length": "indexer_head_size",
        "attention.indexer.block_size": "index_block_size",
        "attention.indexer.top_k": "index_topk_blocks",
    },
    defaults={"routed_scaling_factor": 1.0, "norm_topk_prob": False, "first_k_dense_replace": 0},
    reads=frozenset({"attention.indexer.local_blocks"}),  # which are among those that are chosen
    fixed={"expert_gating_func": (SIGMOID,)},
    tensors=(
        *NEOX_BODY,
        *QK_NORM,
        *mlp("dense"),
        *experts(_MODULE, _PROJECTIONS, kind="sparse"),
        *shared_expert(f"{_MODULE}.shared_experts", kind="sparse"),
        router_bias(f"{_MODULE}.e_score_correction_bias"),
        _indexer("q_proj", "indexer_heads*indexer_head hidden"),
        _indexer("k_proj", "indexer_head hidden"),
        _indexer("q_norm", "indexer_head"),
        _indexer("k_norm", "indexer_head"),
    ),
    rope=rope.partial,
    constants=_ROUTER
    | {
        "hidden_act": "swigluoai",
        # As llama.cpp has them, in whose files they are not.
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "qk_norm_type": "per_head",
    },
    derived=(_rotated, _chosen),
    # By the first, which is no class, SGLang takes it for a model that attends to everything.
    causal_lm=("MiniMaxM3ForCausalLM", "MiniMaxM3SparseForCausalLM"),
)

ARCHITECTURES = (MINIMAX_M2, MINIMAX_M3)
