"""Small models on the disk: the file, and the checkpoint that has the same numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

from hf_models.tiny import Tiny
from random_model import PROMPT, tokenizer_fields
from rewrite import add, finish

#: The type of a matrix, by the end of its name in the file; rows are multiples of 32 weights.
_TYPES = {
    "token_embd.weight": Type.Q8_0,
    "ffn_down.weight": Type.Q5_1,
    "_exps.weight": Type.Q4_0,
    "attn_v.weight": Type.Q5_0,
}

#: Matrices that llama.cpp does not quantize.
_PLAIN = re.compile(r"ffn_gate_inp|ssm_conv1d|shortconv.conv|_norm\.|rope_f|altup_\w+_coef")

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


#: Classes of the tests' own: ``model_type`` to the module here, and the name.
_OWN = {
    "deepseek_ocr2_text": ("references", "DeepseekOcr2TextForCausalLM"),
    "muse_glimmer_text": ("references", "MuseGlimmerTextForCausalLM"),
    "looped_llama": ("looped", "LoopedLlamaForCausalLM"),
    "grok_by_gemma2": ("grok", "GrokForCausalLM"),
    "spark": ("spark", "SparkForCausalLM"),
    "nemotron-nas": ("deci", "DeciLMForCausalLM"),
    "step3p5": ("step", "Step3p5ForCausalLM"),
}


@dataclass(frozen=True)
class Written:
    """A model on the disk: the file, and the checkpoint it was made from in ``hf``."""

    path: Path
    hf: Path

    @property
    def reference(self) -> torch.nn.Module:
        """transformers' model of the file's numbers, in float32."""
        return _loaded(self.hf)

    def logprobs(
        self, tokens: Sequence[int] = PROMPT, reference: torch.nn.Module | None = None
    ) -> list[float]:
        """log p of each token but the first, by :attr:`reference` or another model."""
        ids = torch.tensor(tokens)
        with torch.no_grad():
            logits = (reference or self.reference)(ids[None]).logits[0, :-1].log_softmax(-1)
        return logits.gather(1, ids[1:, None])[:, 0].tolist()


def auto_config() -> Any:
    """transformers' ``AutoConfig``, with those that the tests add to it."""
    return import_module("hf_models.grok").AutoConfig


def class_of(config: Any) -> Any:
    """transformers' class of a model that gives text: of a vision model, or of text alone."""
    import transformers
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    if kind in _OWN:  # take seconds to import
        module, name = _OWN[kind]
        return getattr(import_module(f"hf_models.{module}"), name)
    if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return transformers.AutoModelForCausalLM
    if kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    # Of text, and by itself in no list.
    name = modeling_auto.MODEL_MAPPING_NAMES[kind].removesuffix("Model")
    return getattr(transformers, f"{name}ForCausalLM")


def build(config: Any, **options: Any) -> torch.nn.Module:
    """transformers' model of a configuration, with weights of any kind, in float32."""
    found = class_of(config)
    make = getattr(found, "from_config", None) or found._from_config
    return make(config, dtype=torch.float32, **options)


@cache
def _loaded(hf: Path) -> torch.nn.Module:
    found = class_of(auto_config().from_pretrained(hf))
    return found.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager").eval()


def write_model(folder: Path, tiny: Tiny, seed: int = 0) -> Written:
    """``folder/model.gguf``, and in ``folder/hf`` the checkpoint that has the same numbers."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    # A copy: transformers writes into the dictionaries it is given.
    config = auto_config().for_model(tiny.model_type, **deepcopy(_SIZES | tiny.sizes))
    model = build(config)
    randomize(model)
    hf = folder / "hf"
    model.save_pretrained(hf)
    checkpoint = load_file(hf / "model.safetensors")
    tensors = converted(tiny, checkpoint, config)
    path = folder / "model.gguf"
    stored = _write(path, tiny, config, tensors, tiny.numbers(checkpoint))
    save_file(
        _numbers_of(tiny, checkpoint, config, stored), hf / "model.safetensors", {"format": "pt"}
    )
    return Written(path, hf)


def randomize(model: torch.nn.Module) -> None:
    """Weights that keep activations of order one, and no two alike."""
    unscaled = model.config.model_type == "gemma3n_text"  # which queries make up for
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
                if unscaled and "q_norm" in name:
                    weight *= len(weight) ** -0.5
            elif "layer_scalar" in name:
                weight.copy_(1 + 0.2 * noise)
            elif "correction_bias" in name or "expert_bias" in name:
                weight.copy_(noise.abs() * 0.2)
            else:
                weight.copy_(0.2 * noise)


def converted(
    tiny: Tiny, checkpoint: Mapping[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Tensors of the file, by name, of those of a checkpoint."""
    known = tiny.names or tiny.arch
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == known)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    for name, tensor in stacked(joined(tiny, checkpoint)):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for new, part in tiny.convert(name, tensor, config):
            new = new.replace("e_score_correction_bias", "e_score_correction.bias")
            known = new[1:] if new[0] == "=" else names.get_name(new, (".weight", ".bias"))
            assert known is not None, f"gguf-py has no name for {new}"
            tensors[known] = part
    return tensors


def joined(tiny: Tiny, checkpoint: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, those of :attr:`Tiny.joined` as one."""
    tensors = dict(checkpoint)
    for whole, parts in tiny.joined.items():
        for name in [name for name in checkpoint if name.endswith(parts[0])]:
            prefix = name.removesuffix(parts[0])
            tensors[prefix + whole] = torch.cat([tensors.pop(prefix + part) for part in parts])
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
    path: Path,
    tiny: Tiny,
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, list[float]],
) -> dict[str, torch.Tensor]:
    """The file, and the numbers that its quantized tensors stand for."""
    writer = gguf.GGUFWriter(path, tiny.arch)
    for key, value in (common_metadata(config) | tiny.metadata(config)).items():
        add(writer, f"{tiny.arch}.{key}", value)
    for key, value in numbers.items():
        writer.add_array(key, value)
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
    finish(writer)
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


def _first(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def common_metadata(config: Any) -> dict[str, Any]:
    """The keys that llama.cpp's ``TextModel.set_gguf_parameters`` writes."""
    rope = config.rope_parameters or {}
    rope = rope.get("full_attention", rope)
    # Where layers differ, the architecture has more to say.
    own = config.per_layer_attributes or ()
    head, heads, kv_heads = (
        None if name in own else getattr(config, name, None)
        for name in ("head_dim", "num_attention_heads", "num_key_value_heads")
    )
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": _first(config, "rms_norm_eps"),
        "attention.layer_norm_epsilon": _first(config, "layer_norm_eps", "norm_epsilon"),
        "rope.freq_base": float(rope["rope_theta"]) if rope else None,
        "expert_count": _first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": _first(config, "num_experts_per_tok"),
        "expert_group_count": _first(config, "n_group"),
        "expert_group_used_count": _first(config, "topk_group"),
    }
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {
            "rope.scaling.type": rope["rope_type"],
            "rope.scaling.factor": float(rope["factor"]),
        }
    if rope.get("rope_type") == "yarn":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                found[f"rope.scaling.yarn_{key}"] = float(rope[key])
    return {key: value for key, value in found.items() if value is not None}
