"""Writes a trained checkpoint as GGUF in F16: ``python -m counting.export CHECKPOINT FILE``.

llama.cpp's ``llama-quantize FILE OUT Q4_K_M`` makes the quantized files of it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from counting.vocabulary import (
    CHAT_TEMPLATE,
    END_OF_TURN,
    PADDING,
    PRE_TOKENIZER,
    SPECIAL,
    tokenizer,
)


def export(checkpoint: Path, path: Path) -> None:
    """Matrices in F16, vectors and routers in F32, as llama.cpp's converter has them."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type.replace("_", ""))
    _write_metadata(writer, config, path.stem)
    _write_tokenizer(writer)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == writer.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, values in _tensors(model, names):
        plain = values.ndim == 1 or "ffn_gate_inp" in name
        writer.add_tensor(name, values.astype(np.float32 if plain else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: torch.nn.Module, names: gguf.TensorNameMap) -> Iterator[tuple[str, np.ndarray]]:
    """Name in the file and float32 values, outermost dimension first; experts stay stacked."""
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if name == "lm_head.weight":  # tied to the embedding
            continue
        if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)", name):
            block = f"blk.{match[1]}.ffn_"
            if match[2] == "down_proj":
                yield f"{block}down_exps.weight", values
            else:  # gate and up
                for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                    yield f"{block}{part}_exps.weight", half
            continue
        base, _, suffix = name.rpartition(".")
        yield f"{names.get_name(base)}.{suffix}", values


def _write_metadata(writer: gguf.GGUFWriter, config: PretrainedConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if config.model_type.endswith("moe"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    ids = tokenizer().get_vocab()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(sorted(ids, key=ids.get))
    writer.add_token_types([control] * len(SPECIAL) + [normal] * (len(ids) - len(SPECIAL)))
    writer.add_token_merges(_merges())
    writer.add_eos_token_id(END_OF_TURN)
    writer.add_pad_token_id(PADDING)
    writer.add_bos_token_id(PADDING)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _merges() -> list[str]:
    merges = json.loads(tokenizer().to_str())["model"]["merges"]
    return [" ".join(pair) for pair in merges]


def main() -> None:
    parser = argparse.ArgumentParser(prog="counting.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    export(options.checkpoint, options.file)


if __name__ == "__main__":
    main()
