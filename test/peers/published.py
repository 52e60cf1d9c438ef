"""Checkpoints as they were published of models that transformers has under another name.

Each function takes transformers' configuration and tensors and gives those of the model's own code,
which llama.cpp's converter knows: ``(configuration, tensors)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_models import latent

Tensors = dict[str, torch.Tensor]
Published = Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]]


def renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Tensors whose names contain a key have its value there; the first that fits counts."""

    def new(name: str) -> str:
        old = next((old for old in names if re.search(old, name)), None)
        return name if old is None else re.sub(old, names[old], name)

    return {new(name): tensor for name, tensor in tensors.items()}


def _merged(
    tensors: Tensors, whole: str, parts: tuple[str, ...], merge: Callable[..., torch.Tensor]
) -> Tensors:
    """Tensors of a layer that end in ``parts`` as one that ends in ``whole``."""
    left = dict(tensors)
    for name in tensors:
        if name.endswith(parts[0]):
            prefix = name.removesuffix(parts[0])
            left[prefix + whole] = merge(*(left.pop(prefix + part) for part in parts))
    return left


def _qkv(kind: str = "weight") -> tuple[str, ...]:
    return tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv")


def _side_by_side(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts)


def _of(config: dict[str, Any], model_class: str, **more: Any) -> dict[str, Any]:
    return {**config, "architectures": [model_class], "model_type": "published", **more}


def internlm2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups, head = config["num_key_value_heads"], config["head_dim"]
        rows = (part.view(groups, -1, head, part.shape[-1]) for part in (q, k, v))
        return torch.cat(list(rows), 1).view(-1, q.shape[-1])

    tensors = _merged(tensors, "attention.wqkv.weight", _qkv(), grouped)
    names = {
        "embed_tokens": "tok_embeddings",
        "^lm_head": "output",
        r"self_attn\.o_proj": "attention.wo",
        r"mlp\.gate_proj": "feed_forward.w1",
        r"mlp\.up_proj": "feed_forward.w3",
        r"mlp\.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    return _of(config, "InternLM2ForCausalLM"), renamed(tensors, names)


def granite4(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    words = {"linear_attention": "mamba", "full_attention": "attention"}
    kinds = [words[kind] for kind in config["layer_types"]]
    return _of(config, "GraniteMoeHybridForCausalLM", layer_types=kinds), tensors


def nemotron(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
    pattern = "".join(letters[kind] for kind in config["layers_block_type"])
    gone = re.compile(r"expert|moe|n_group$|topk|layers_block_type")
    kept = {key: value for key, value in config.items() if not gone.search(key)}
    config = _of(kept, "NemotronHForCausalLM", num_hidden_layers=len(pattern))
    return config | {"hybrid_override_pattern": pattern}, tensors


def kimi(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    names = {r"block_sparse_moe\.(\w+_proj)": r"mlp.\1"}  # of a dense layer
    config = _of(config, "KimiLinearForCausalLM", moe_router_activation_func="sigmoid")
    return config, renamed(tensors, names)


def xverse(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _of(config, "XverseForCausalLM"), tensors


def paddleocr(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    parameters = config["rope_parameters"] | {"mrope_section": [4, 6, 6]}
    config = _of(config, "PaddleOCRVLForConditionalGeneration", rope_parameters=parameters)
    return config, tensors


def nanbeige(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _of(config, "NanbeigeForCausalLM"), tensors


def spark(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    tensors = _merged(tensors, "self_attn.q_k_v_proj.weight", _qkv(), _side_by_side)
    names = {r"self_attn\.o_proj": "self_attn.out_proj"}
    kept = {key: value for key, value in config.items() if "expert" not in key}
    gate = {"headwise_attn_output_gate": True, "gate_attn_act_mode": "sigmoid"}
    config = _of(kept, "Spark2_5ForCausalLM", hidden_act="gelu", **gate)
    return config, renamed(tensors, names)


def grok(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    names = {
        "input_layernorm": "pre_attn_norm",
        "post_attention_layernorm": "post_attn_norm",
        "pre_feedforward_layernorm": "pre_moe_norm",
        "post_feedforward_layernorm": "post_moe_norm",
        r"mlp\.dense": "mlp",
        r"mlp\.gate\.": "block_sparse_moe.gate.",
    }
    for part, new in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        names[rf"mlp\.(experts\.\d+)\.{part}_proj"] = rf"block_sparse_moe.\1.{new}"
    tensors = {n: t + 1 if n.endswith("norm.weight") else t for n, t in tensors.items()}
    return _of(config, "Grok1ForCausalLM"), renamed(tensors, names)


def orion(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    epsilon = config["layer_norm_eps"]
    return _of(config, "OrionForCausalLM", rms_norm_eps=epsilon), tensors


def _as_gpt(tensors: Tensors, parts: Mapping[str, str]) -> Tensors:
    """Names of models that were written after GPT-2.

    Args:
        parts: what a projection of a layer is called.
    """
    names = {r"model\.embed_tokens": "transformer.wte", r"model\.norm": "transformer.ln_f"}
    norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
    for old, new in (norms | parts).items():
        names[rf"model\.layers\.(\d+)\.{re.escape(old)}\."] = rf"transformer.h.\1.{new}."
    return renamed(tensors, names)


def exaone(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    parts = {
        **{f"self_attn.{part}_proj": f"attn.attention.{part}_proj" for part in "qkv"},
        "self_attn.o_proj": "attn.attention.out_proj",
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj",
    }
    config = _of(config, "ExaoneForCausalLM", activation_function="silu")
    return config, _as_gpt(tensors, parts)


def qwen(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    for kind in ("weight", "bias"):
        tensors = _merged(tensors, f"self_attn.c_attn.{kind}", _qkv(kind), _side_by_side)
    parts = {
        "self_attn.c_attn": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj",
    }
    width = 2 * config["intermediate_size"]
    config = _of(config, "QWenLMHeadModel", intermediate_size=width)
    return config, _as_gpt(tensors, parts)


def minicpm(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    depth = config["residual_multiplier"] * config["num_hidden_layers"] ** 0.5
    config = _of(
        config,
        "MiniCPMForCausalLM",
        scale_emb=config["embedding_multiplier"],
        scale_depth=depth,
        dim_model_base=config["hidden_size"] / config["logits_scaling"],
    )
    return config, tensors


def gpt2(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return {**config, "n_ctx": config["n_positions"]}, tensors


def phimoe(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _of(config, "PhiMoEForCausalLM"), tensors


def _experts_apart(tensors: Tensors) -> Tensors:
    """Each of the experts that transformers stacks, gate above up, by itself."""
    found = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.partition(".experts.")
        if not kind:
            found[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            parts = matrix.chunk(2) if kind == "gate_up_proj" else (matrix,)
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            for part, rows in zip(kinds, parts, strict=True):
                found[f"{prefix}.experts.{expert}.{part}.weight"] = rows
    return found


def deepseek(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    dense = config["mlp_layer_types"].count("dense")
    config = _of(config, "DeepseekForCausalLM", first_k_dense_replace=dense)
    return config, _experts_apart(tensors)


def deepseek_ocr(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    config, tensors = deepseek(config, tensors)
    return _of(config, "DeepseekOCRForCausalLM", qk_rope_head_dim=0), tensors


def hunyuan_vl(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Its base is a smaller one, which a factor makes the configuration's."""
    parameters, head = config["rope_parameters"], config["head_dim"]
    theta = parameters["rope_theta"] / 3 ** (head / (head - 2))
    parameters = {"rope_type": "xdrope", "alpha": 3.0, "rope_theta": theta}
    parameters["xdrope_section"] = [head // 8] * 4
    return _of(config, "HunYuanVLForConditionalGeneration", rope_parameters=parameters), tensors


def ling(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    names = {
        r"block_sparse_moe\.input_linear\.weight": "mlp.experts.gate_up_proj",
        r"block_sparse_moe\.output_linear\.weight": "mlp.experts.down_proj",
        r"block_sparse_moe\.router\.layer": "mlp.gate",
        r"shared_mlp\.input_linear": "mlp.shared_experts.gate_up_proj",
        r"shared_mlp\.output_linear": "mlp.shared_experts.down_proj",
        "embed_tokens": "word_embeddings",
        r"self_attn\.o_proj": "attention.dense",
    }
    tensors = _merged(tensors, "attention.query_key_value.weight", _qkv(), _side_by_side)
    tensors = _experts_apart(renamed(tensors, names))
    for name in [name for name in tensors if "shared_experts.gate_up_proj" in name]:
        for part, rows in zip(("gate", "up"), tensors.pop(name).chunk(2), strict=True):
            tensors[name.replace("gate_up", part)] = rows
    experts = config.get("num_local_experts") or config["n_routed_experts"]
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    shared = config.get("shared_intermediate_size", 0) // width or config.get("n_shared_experts")
    config = _of(
        config,
        "BailingMoeForCausalLM",
        num_experts=experts,
        num_shared_experts=shared,
        moe_intermediate_size=width,
        first_k_dense_replace=0,
        norm_topk_prob="num_local_experts" in config,
    )
    return config, tensors


def llama_embed(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    return _of(config, "LlamaBidirectionalModel"), tensors


def _drafts(config: dict[str, Any], tensors: Tensors, one: float) -> tuple[Tensors, Tensors]:
    """The last layer predicts one token more, and often the one that is chosen.

    A token follows mostly from the one before it, to which layers add little.

    Args:
        one: weights of norms are around it.

    Returns:
        The model's tensors, and those around the last layer.
    """
    small = re.compile(r"(o_proj|out_proj|down_proj)(\.weight)?$")
    tensors = {name: t / 8 if small.search(name) else t for name, t in tensors.items()}
    tensors["model.embed_tokens.weight"] = 16 * tensors["model.embed_tokens.weight"]
    hidden = config["hidden_size"]
    torch.manual_seed(1)
    return tensors, {
        "eh_proj.weight": torch.eye(hidden, 2 * hidden) + torch.randn(hidden, 2 * hidden) / 40,
        "enorm.weight": one + torch.randn(hidden) / 8,
        "hnorm.weight": one + torch.randn(hidden) / 8,
        "shared_head.norm.weight": tensors["model.norm.weight"] + torch.randn(hidden) / 16,
    }


def glm_drafts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    last = config["num_hidden_layers"] - 1
    tensors, around = _drafts(config, tensors, 1.0)
    tensors |= {f"model.layers.{last}.{name}": tensor for name, tensor in around.items()}
    return config | {"num_hidden_layers": last, "num_nextn_predict_layers": 1}, tensors


#: Names of tensors of the layer that drafts, in checkpoints of Qwen and of others.
QWEN_DRAFTS = {
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "shared_head.norm.",
    "mtp.layers.0.": "",
}


def qwen_drafts(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    last = config["num_hidden_layers"] - 1
    tensors, around = _drafts(config, tensors, 0.0)
    prefix = f"model.layers.{last}."
    tensors |= {prefix + name: tensor for name, tensor in around.items()}
    names = {re.escape(prefix + old): new for new, old in QWEN_DRAFTS.items()}
    types = config["layer_types"][:last]
    sizes = {"num_hidden_layers": last, "mtp_num_hidden_layers": 1, "layer_types": types}
    return config | sizes, renamed(tensors, names)


def step(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    full, sliding = (config["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding"))
    kinds = config["layer_types"]
    sparse = [i for i, kind in enumerate(config["mlp_layer_types"]) if kind == "sparse"]
    groups = config["num_key_value_heads"]
    heads = config["num_sliding_attention_heads"]
    new = {
        "num_attention_groups": groups,
        "attention_other_setting": {"num_attention_heads": heads, "num_attention_groups": groups},
        "partial_rotary_factors": [0.5 if kind == "full_attention" else 1.0 for kind in kinds],
        "rope_theta": [full["rope_theta"], sliding["rope_theta"]],
        "rope_scaling": full,
        "moe_num_experts": config["n_routed_experts"],
        "moe_top_k": config["num_experts_per_tok"],
        "moe_layers_enum": ",".join(map(str, sparse)),
        "norm_expert_weight": True,
    }
    gone = ("rope_parameters", "n_routed_experts", "num_experts_per_tok", "per_layer_config")
    config = _of({k: v for k, v in config.items() if k not in gone}, "Step3p5ForCausalLM", **new)
    for name in [name for name in tensors if name.endswith("gate_up_proj")]:
        prefix = name.removesuffix("gate_up_proj")
        for part, half in zip(("gate", "up"), tensors.pop(name).chunk(2, 1), strict=True):
            tensors[f"{prefix}{part}_proj"] = half
    names = {
        r"mlp\.gate\.e_score_correction_bias": "moe.router_bias",
        r"mlp\.gate\.": "moe.gate.",
        r"mlp\.experts\.(\w+)$": r"moe.\1.weight",
        r"mlp\.shared_experts\.": "share_expert.",
    }
    return config, renamed(tensors, names)


def mimo(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    full, sliding = (config["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding"))
    new = {
        "hybrid_layer_pattern": [int(k == "sliding_attention") for k in config["layer_types"]],
        "swa_num_attention_heads": config["num_attention_heads"],
        "swa_num_key_value_heads": 2 * config["num_key_value_heads"],
        "swa_head_dim": config["head_dim"],
        "swa_v_head_dim": config["v_head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "topk_method": "noaux_tc",
        "rope_theta": full["rope_theta"],
        "swa_rope_theta": sliding["rope_theta"],
        "partial_rotary_factor": full["partial_rotary_factor"],
    }
    kept = {
        key: value for key, value in config.items() if key not in ("rope_parameters", "n_group")
    }
    return _of(kept, "MiMoV2FlashForCausalLM", **new), tensors


def minimax_m3(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    tensors = _experts_apart(tensors)
    for name in [name for name in tensors if name.endswith("gate_up_proj.weight")]:
        for part, rows in zip(("gate", "up"), tensors.pop(name).chunk(2), strict=True):
            tensors[name.replace("gate_up", part)] = rows
    names = {
        rf"mlp\.(experts\.\d+)\.{part}_proj": rf"block_sparse_moe.\1.{name}"
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    }
    names |= {
        r"mlp\.gate\.e_score": "block_sparse_moe.e_score",
        r"mlp\.(shared_experts|gate)\.": r"block_sparse_moe.\1.",
        r"indexer\.": "index_",
    }
    chosen = {
        "sparse_num_index_heads": config["index_n_heads"],
        "sparse_index_dim": config["index_head_dim"],
        "sparse_topk_blocks": config["index_topk_blocks"],
        "sparse_block_size": config["index_block_size"],
        "sparse_local_block": config["index_local_blocks"],
    }
    config = _of(
        config,
        "MiniMaxM3SparseForCausalLM",
        scoring_func="sigmoid",
        n_shared_experts=config["shared_intermediate_size"] // config["intermediate_size"],
        moe_layer_freq=[int(kind == "sparse") for kind in config["mlp_layer_types"]],
        sparse_attention_config=chosen,
    )
    return config, renamed(tensors, names)


def hunyuan4(config: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    sizes = config["num_attention_heads"], config["qk_rope_head_dim"]
    return config, dict(latent.hunyuan4(name, rows, *sizes) for name, rows in tensors.items())


#: By the name of a test.
PUBLISHED: dict[str, Published] = {
    "granite-4": granite4,
    "granite-4-dense": granite4,
    "granite-4-micro": granite4,
    "granite-4-bias": granite4,
    "nemotron-h": nemotron,
    "nemotron-h-bias": nemotron,
    "step-3.5": step,
    "mimo-v2-flash": mimo,
    "internlm2": internlm2,
    "kimi-linear": kimi,
    "kimi-linear-fused": kimi,
    "xverse": xverse,
    "orion": orion,
    "nanbeige": nanbeige,
    "spark-2.5": spark,
    "grok-2": grok,
    "grok-1": grok,
    "paddleocr": paddleocr,
    "exaone": exaone,
    "exaone-3.5": exaone,
    "qwen": qwen,
    "minicpm": minicpm,
    "minicpm4": minicpm,
    "gpt2": gpt2,
    "gpt2-output": gpt2,
    "phimoe": phimoe,
    "deepseek-moe": deepseek,
    "deepseek-ocr": deepseek_ocr,
    "hunyuan-vl": hunyuan_vl,
    "hunyuan-4": hunyuan4,
    "hunyuan-4-unclamped": hunyuan4,
    "ling": ling,
    "ling-unnormalized": ling,
    "minimax-m3": minimax_m3,
    "minimax-m3-all-sparse": minimax_m3,
    "llama-embed": llama_embed,
    "glm4moe-drafts": glm_drafts,
    "glm-4.7-flash-drafts": glm_drafts,
    "deepseek-v3.2-drafts": glm_drafts,
    "glm-5-drafts": glm_drafts,
    "qwen3.5-drafts": qwen_drafts,
    "qwen3.5-moe-drafts": qwen_drafts,
    "qwen3-next-drafts": qwen_drafts,
}
