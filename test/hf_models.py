"""Small models of any architecture: transformers' own classes, converted as llama.cpp converts.

transformers makes a random model of an architecture and names its weights as published checkpoints
do.  :func:`write_model` converts those to GGUF, quantized, and gives transformers the same numbers
back: the answer that a server of the file must give.  What conversion does to tensors and metadata
is written here anew from llama.cpp's converter (``convert_hf_to_gguf.py`` and ``conversion/``),
knowing nothing of the project's table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from random_model import PROMPT, tokenizer_fields

#: The type of a matrix, by the end of its name in the file; rows are multiples of 32 weights.
_TYPES = {
    "token_embd.weight": Type.Q8_0,
    "ffn_down.weight": Type.Q5_1,
    "_exps.weight": Type.Q4_0,
    "attn_v.weight": Type.Q5_0,
}

#: Matrices that llama.cpp does not quantize.
_PLAIN = re.compile(r"ffn_gate_inp|ssm_conv1d|_norm\.|rope_f")

#: ``(name, tensor, configuration)`` to what conversion makes of it: names as the name map takes
#: them, or ``=NAME`` for a name of the file.
Conversion = Callable[[str, torch.Tensor, Any], Iterable[tuple[str, torch.Tensor]]]


def unchanged(name: str, tensor: torch.Tensor, config: Any) -> Iterable[tuple[str, torch.Tensor]]:
    return [(name, tensor)]


@dataclass(frozen=True)
class Tiny:
    """A small model of an architecture.

    Args:
        arch: ``general.architecture``.
        model_type: transformers' ``model_type``.
        sizes: of its configuration, beside those of ``_SIZES``.
        metadata: keys that the architecture has beside the common ones, from the configuration.
        convert: what conversion does to a tensor.
        extra: tensors that conversion makes from the configuration.
        types: type of matrices, before those of ``_TYPES``, by the end of their names.
        refused: device ("cpu" or "npu") to why the engine does not run it there.
    """

    arch: str
    model_type: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    metadata: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    convert: Conversion = unchanged
    extra: Callable[[Any], Mapping[str, torch.Tensor]] = lambda config: {}
    types: Mapping[str, Type] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


_SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    # No model's default, so that a file's number must be the one that counts.
    "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0},
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Written:
    """A model on the disk: the file, and the checkpoint it was made from in ``hf``."""

    path: Path
    hf: Path

    def logprobs(self) -> list[float]:
        """log p of each token of ``PROMPT`` but the first, by transformers in float32."""
        return _logprobs(self.hf)


@cache
def _logprobs(hf: Path) -> list[float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0].tolist()


def write_model(folder: Path, tiny: Tiny, seed: int = 0) -> Written:
    """``folder/model.gguf``, and in ``folder/hf`` the checkpoint that has the same numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    # A copy: transformers writes into the dictionaries it is given.
    config = AutoConfig.for_model(tiny.model_type, **deepcopy(_SIZES | tiny.sizes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model)
    hf = folder / "hf"
    model.save_pretrained(hf)
    checkpoint = load_file(hf / "model.safetensors")
    tensors = converted(tiny, checkpoint, config)
    path = folder / "model.gguf"
    stored = _write(path, tiny, config, tensors)
    save_file(
        _numbers_of(tiny, checkpoint, config, stored), hf / "model.safetensors", {"format": "pt"}
    )
    return Written(path, hf)


def randomize(model: torch.nn.Module) -> None:
    """Weights that keep activations of order one, and no two alike."""
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *model.named_buffers()):
            if not weight.is_floating_point() or "inv_freq" in name:
                continue
            noise = torch.randn_like(weight)
            if weight.dim() > 1:
                # Stacked experts have their input last, or second where they are transposed.
                weight.copy_(noise * weight.shape[-1] ** -0.5)
            elif "norm" in name and weight.mean() > 0.5:
                weight.copy_(1 + 0.2 * noise)
            elif "correction_bias" in name or "expert_bias" in name:
                weight.copy_(noise.abs() * 0.2)
            else:
                weight.copy_(0.2 * noise)


def converted(
    tiny: Tiny, checkpoint: Mapping[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Tensors of the file, by name, of those of a checkpoint."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == tiny.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    for name, tensor in stacked(checkpoint):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for new, part in tiny.convert(name, tensor, config):
            new = new.replace("e_score_correction_bias", "e_score_correction.bias")
            known = new[1:] if new[0] == "=" else names.get_name(new, (".weight", ".bias"))
            assert known is not None, f"gguf-py has no name for {new}"
            tensors[known] = part
    return tensors


def stacked(checkpoint: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint, those of experts stacked under the name without the number."""
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in checkpoint.items():
        if match := re.search(r"\.experts\.(\d+)\.", name):
            packed = name.replace(match[0], ".experts.")
            experts.setdefault(packed, {})[int(match[1])] = tensor
        else:
            yield name, tensor
    for name, members in experts.items():
        yield name, torch.stack([members[i] for i in range(len(members))])


def _type_of(tiny: Tiny, name: str, tensor: torch.Tensor) -> Type:
    if tensor.dim() < 2 or _PLAIN.search(name) or not name.endswith(".weight"):
        return Type.F32
    for end, kind in (*tiny.types.items(), *_TYPES.items()):
        if name.endswith(end):
            return kind
    return Type.Q8_0


def _write(
    path: Path, tiny: Tiny, config: Any, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The file, and the numbers that its quantized tensors stand for."""
    writer = gguf.GGUFWriter(path, tiny.arch)
    for key, value in (common_metadata(config) | tiny.metadata(config)).items():
        _add(writer, f"{tiny.arch}.{key}", value)
    for key, value, kind in tokenizer_fields():
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    stored = {}
    for name, tensor in tensors.items():
        kind = _type_of(tiny, name, tensor)
        numbers = tensor.float().contiguous().numpy()
        if kind == Type.F32:
            writer.add_tensor(name, numbers)
            continue
        blocks = gguf.quantize(numbers, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        stored[name] = torch.from_numpy(gguf.dequantize(blocks, kind)).view(tensor.shape)
    for name, tensor in tiny.extra(config).items():
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _numbers_of(
    tiny: Tiny,
    checkpoint: Mapping[str, torch.Tensor],
    config: Any,
    stored: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The checkpoint whose conversion gives exactly the numbers ``stored``.

    Conversion only moves the numbers of matrices about, so converting numbers that say where they
    come from tells where each number of the file belongs.
    """
    sizes = {name: tensor.numel() for name, tensor in checkpoint.items()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
    origins = {
        name: torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape) + starts[name]
        for name, tensor in checkpoint.items()
    }
    flat = torch.cat([tensor.flatten().float() for tensor in checkpoint.values()])
    for name, origin in converted(tiny, origins, config).items():
        if name in stored:
            flat[origin.long().flatten()] = stored[name].flatten()
    parts = flat.split(list(sizes.values()))
    return {
        name: part.view(checkpoint[name].shape).clone()
        for name, part in zip(sizes, parts, strict=True)
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, (bool, np.bool_)):
        writer.add_bool(key, bool(value))
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, list(value))


def _first(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def common_metadata(config: Any) -> dict[str, Any]:
    """The keys that llama.cpp's ``TextModel.set_gguf_parameters`` writes."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", None),
        "attention.value_length": getattr(config, "head_dim", None),
        "attention.layer_norm_rms_epsilon": _first(config, "rms_norm_eps"),
        "attention.layer_norm_epsilon": _first(config, "layer_norm_eps", "norm_epsilon"),
        "rope.freq_base": float(rope["rope_theta"]),
        "expert_count": _first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": _first(config, "num_experts_per_tok"),
        "expert_group_count": _first(config, "n_group"),
        "expert_group_used_count": _first(config, "topk_group"),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {
            "rope.scaling.type": rope["rope_type"],
            "rope.scaling.factor": float(rope["factor"]),
        }
    if rope["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                found[f"rope.scaling.yarn_{key}"] = float(rope[key])
    return {key: value for key, value in found.items() if value is not None}


# What conversion does, architecture by architecture.


def pairs_from_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head so that those which the rotary embedding turns together are neighbours."""
    head = rows.shape[0] // heads
    order = torch.arange(head).view(2, head // 2).T.flatten()
    return rows.view(heads, head, -1)[:, order].reshape(rows.shape)


def llama(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if re.search(r"q_proj\.(weight|bias)$", name):
        tensor = pairs_from_halves(tensor, config.num_attention_heads)
    if re.search(r"k_proj\.(weight|bias)$", name):
        tensor = pairs_from_halves(tensor, config.num_key_value_heads)
    # The name map knows Mixtral's experts by their names before transformers.
    if "block_sparse_moe.experts" in name:
        name = name.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    yield name, tensor


def llama_metadata(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"vocab_size": config.vocab_size, "rope.dimension_count": head}


def llama3_factors(config: Any) -> dict[str, torch.Tensor]:
    rope = config.rope_parameters
    head = config.head_dim
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2) / head)
    factors = []
    for wave in (2 * torch.pi / frequencies).tolist():
        turns = rope["original_max_position_embeddings"] / wave
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": torch.tensor(factors)}


def plus_one(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def gemma2_metadata(config: Any) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base": None,
    }


def gemma3_metadata(config: Any) -> dict[str, Any]:
    return {
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
    }


def granite_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def granitemoe(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if "input_linear" in name:
        layer = name.split(".")[2]
        gate, up = tensor.chunk(2, dim=1)
        yield f"=blk.{layer}.ffn_gate_exps.weight", gate
        yield f"=blk.{layer}.ffn_up_exps.weight", up
    else:
        yield from llama(name, tensor, config)


def phi3_metadata(config: Any) -> dict[str, Any]:
    head = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    return {
        "rope.dimension_count": int(head * rope["partial_rotary_factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "attention.sliding_window": config.sliding_window or 0,
    }


def phi3_factors(config: Any) -> dict[str, torch.Tensor]:
    rope = config.rope_parameters
    return {
        f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"])
        for kind in ("long", "short")
    }


def partial_rope_metadata(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"rope.dimension_count": int(head * config.rope_parameters["partial_rotary_factor"])}


def window_pattern_metadata(config: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
    }


def glm4moe_metadata(config: Any) -> dict[str, Any]:
    return partial_rope_metadata(config) | {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        # Blocks that predict further tokens count, also where a checkpoint leaves them out.
        "block_count": config.num_hidden_layers + config.num_nextn_predict_layers,
        "nextn_predict_layers": config.num_nextn_predict_layers,
    }


def minimax_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_gating_func": 2,
        "rope.dimension_count": config.rotary_dim,
    }


def ernie_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_count": config.moe_num_experts,
        "expert_used_count": config.moe_k,
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": config.intermediate_size // config.num_key_value_heads,
    }


def hunyuan_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_shared_feed_forward_length": config.intermediate_size,
        "expert_feed_forward_length": config.moe_intermediate_size[0],
        "expert_used_count": config.moe_topk[0],
        "expert_shared_count": config.num_shared_expert[0],
    }


def deepseek(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if name.endswith("kv_b_proj.weight"):
        heads = config.num_attention_heads
        k, v = tensor.view(heads, -1, tensor.shape[1]).split(
            [config.qk_nope_head_dim, config.v_head_dim], dim=1
        )
        yield name.replace("kv_b_proj", "k_b_proj"), k.transpose(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), v
    else:
        yield name, tensor


def deepseek_metadata(config: Any) -> dict[str, Any]:
    found = {
        "vocab_size": config.vocab_size,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_gating_func": 2 if config.model_type == "deepseek_v3" else 1,
    }
    if config.norm_topk_prob:
        found["expert_weights_norm"] = True
    if "mscale_all_dim" in config.rope_parameters:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * config.rope_parameters["mscale_all_dim"]
    return found


def gpt_oss(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    name = re.sub(r"(sinks)$", r"\1.weight", name)
    name = re.sub(r"(experts\.\w+_proj)_bias$", r"\1.bias", name)
    name = re.sub(r"(experts\.\w+_proj)$", r"\1.weight", name)
    if "experts" in name and name.endswith("weight"):
        tensor = tensor.transpose(1, 2)
    if "gate_up_proj" in name:
        yield name.replace("gate_up", "gate"), tensor[:, ::2]
        yield name.replace("gate_up", "up"), tensor[:, 1::2]
    else:
        yield name, tensor


def gpt_oss_metadata(config: Any) -> dict[str, Any]:
    return {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.intermediate_size,
    }


def llama4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if re.search(r"experts\.\w+_proj$", name):
        tensor = tensor.transpose(1, 2)
        name += ".weight"
    if "experts.gate_up_proj" in name:
        gate, up = tensor.chunk(2, dim=1)
        yield name.replace("gate_up", "gate"), gate
        yield name.replace("gate_up", "up"), up
    else:
        yield name, tensor


def llama4_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "feed_forward_length": config.intermediate_size_mlp,
        "interleave_moe_layer_step": config.interleave_moe_layer_step,
        "expert_feed_forward_length": config.intermediate_size,
    }


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_WINDOW = {"sliding_window": 16, "num_hidden_layers": 4}
_NO_LATENT_ON_NPU = {"npu": "the attention operator for latent vectors is not in the simulation"}
_NO_WINDOW_ON_NPU = {"npu": "the engine's attention on Ascend ignores the window"}
_PHI3 = {
    "rope_type": "default",
    "rope_theta": 30000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 2048,
}
_LONG = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.0 + 0.5 * i for i in range(12)],
}
_GPT_OSS_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 512,
}
_BY_LAYER = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 400000.0, "factor": 8.0},
}
_GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
}
_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
_PARTIAL = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}

_LATENT = _EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    # Ascend's operators take these alone.
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_MLA_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}

_llama = partial(Tiny, convert=llama, metadata=llama_metadata)

#: By the name of a test.
TINY: dict[str, Tiny] = {
    "llama-2": _llama("llama", "llama", {"num_key_value_heads": 4}),
    "llama-3.1": _llama(
        "llama", "llama", {"rope_parameters": _LLAMA3, "head_dim": 64}, extra=llama3_factors
    ),
    "llama-bias": _llama("llama", "llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": _llama("llama", "mistral", {"head_dim": 64, "sliding_window": None}),
    "mixtral": _llama("llama", "mixtral", {"num_local_experts": 4}),
    "gemma2": Tiny(
        "gemma2",
        "gemma2",
        _WINDOW
        | {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}
        | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}
        # Not written: no published model has another.
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        gemma2_metadata,
        plus_one,
        refused={"npu": "no capped scores in the engine's attention on Ascend"},
    ),
    "gemma3": Tiny(
        "gemma3",
        "gemma3_text",
        {"sliding_window": 16, "num_hidden_layers": 6, "head_dim": 64}
        | {"query_pre_attn_scalar": 64, "tie_word_embeddings": True, "rope_parameters": _BY_LAYER},
        gemma3_metadata,
        plus_one,
        refused=_NO_WINDOW_ON_NPU,
    ),
    "phi3": Tiny("phi3", "phi3", {"rope_parameters": _PHI3}, phi3_metadata),
    "phi4-mini": Tiny(
        "phi3",
        "phi3",
        {"rope_parameters": _PHI3 | _LONG, "max_position_embeddings": 8192},
        phi3_metadata,
        extra=phi3_factors,
    ),
    "granite": Tiny("granite", "granite", _GRANITE, granite_metadata, llama),
    "granitemoe": Tiny(
        "granitemoe",
        "granitemoe",
        _GRANITE | {"num_local_experts": 4},
        granite_metadata,
        granitemoe,
    ),
    "olmo2": Tiny("olmo2", "olmo2"),
    "command-r": Tiny(
        "command-r",
        "cohere",
        {"tie_word_embeddings": True, "logit_scale": 0.5},
        lambda config: {"logit_scale": config.logit_scale, "rope.scaling.type": "none"},
    ),
    "command-r-plus": Tiny(
        "command-r",
        "cohere",
        {"tie_word_embeddings": True, "logit_scale": 0.5, "use_qk_norm": True},
        lambda config: {"logit_scale": config.logit_scale, "rope.scaling.type": "none"},
    ),
    "cohere2": Tiny(
        "cohere2",
        "cohere2",
        _WINDOW
        | {"tie_word_embeddings": True, "logit_scale": 0.5, "head_dim": 32, "rotary_pct": 1.0},
        lambda config: (
            llama_metadata(config)
            | {
                "logit_scale": config.logit_scale,
                "attention.sliding_window": config.sliding_window,
                "rope.scaling.type": "none",
            }
        ),
        refused=_NO_WINDOW_ON_NPU,
    ),
    "starcoder2": Tiny("starcoder2", "starcoder2", {"sliding_window": None}),
    "smollm3": _llama("smollm3", "smollm3", {"num_hidden_layers": 4, "no_rope_layers": None}),
    "exaone4": Tiny(
        "exaone4",
        "exaone4",
        _WINDOW | {"head_dim": 32},
        window_pattern_metadata,
        refused={"npu": "the engine refuses windows on Ascend"},
    ),
    "exaone4-1.2b": Tiny(
        "exaone4",
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "head_dim": 32},
        lambda config: {"vocab_size": config.vocab_size},
    ),
    "seed-oss": Tiny("seed_oss", "seed_oss", {"head_dim": 32}),
    "glm4": Tiny(
        "glm4", "glm4", {"head_dim": 64, "rope_parameters": _PARTIAL}, partial_rope_metadata
    ),
    "glm4moe": Tiny(
        "glm4moe",
        "glm4_moe",
        _EXPERTS
        | {"n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 64, "use_qk_norm": True}
        | {"attention_bias": True, "rope_parameters": _PARTIAL, "routed_scaling_factor": 1.5},
        glm4moe_metadata,
        refused={
            "npu": "the engine's kernel on Ascend for a part of a head is not in the simulation"
        },
    ),
    "gpt-oss": Tiny(
        "gpt-oss",
        "gpt_oss",
        _WINDOW
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}
        | {"rope_parameters": _GPT_OSS_YARN},
        gpt_oss_metadata,
        gpt_oss,
        types={"_exps.weight": Type.MXFP4},
        refused={"npu": "the engine's kernels for it on Ascend are not in the simulation"},
    ),
    "llama4": Tiny(
        "llama4",
        "llama4_text",
        {"num_local_experts": 4, "intermediate_size_mlp": 256, "head_dim": 32}
        | {"num_hidden_layers": 4, "interleave_moe_layer_step": 2},
        llama4_metadata,
        llama4,
        refused={"npu": "the engine's experts on Ascend weigh what they give, not what they take"},
    ),
    "deepseek-v2-lite": Tiny(
        "deepseek2",
        "deepseek_v2",
        _LATENT | {"q_lora_rank": None, "n_shared_experts": 2, "rope_parameters": _MLA_YARN},
        deepseek_metadata,
        deepseek,
        refused=_NO_LATENT_ON_NPU,
    ),
    "deepseek-v3": Tiny(
        "deepseek2",
        "deepseek_v3",
        _LATENT
        | {"q_lora_rank": 32, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 2.5, "rope_parameters": _MLA_YARN},
        deepseek_metadata,
        deepseek,
        types={"attn_q_a.weight": Type.Q4_1},
        refused=_NO_LATENT_ON_NPU,
    ),
    "minimax-m2": Tiny(
        "minimax-m2",
        "minimax_m2",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16},
        minimax_metadata,
        refused={"npu": "the engine's norm of queries and keys on Ascend is not in the simulation"},
    ),
    "ernie4.5-moe": Tiny(
        "ernie4_5-moe",
        "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
        ernie_metadata,
    ),
    "hunyuan-moe": Tiny(
        "hunyuan-moe",
        "hunyuan_v1_moe",
        {"num_experts": 4, "moe_topk": [2, 2], "head_dim": 32, "num_shared_expert": [1, 1]}
        | {"moe_intermediate_size": [192, 192]},
        hunyuan_metadata,
    ),
}

# Where the engine ignores a window, what it answers is right within it.
TINY |= {
    f"{name}-within-window": replace(
        TINY[name], sizes=TINY[name].sizes | {"sliding_window": 2048}, refused={}
    )
    for name in ("gemma3", "cohere2")
}
