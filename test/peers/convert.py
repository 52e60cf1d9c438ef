"""Makes and converts models: ``python convert.py LLAMA_CPP OUT TYPES NAME...``.

Its own process, since llama.cpp's gguf-py stands in the way of the installed one.  Writes
transformers' checkpoint ``OUT/NAME/hf``, and for each of the types, such as ``F32,Q8_0``, what the
converter makes of it, ``OUT/NAME/TYPE.gguf``: the same numbers in all of them.  Where that fails
``OUT/NAME/error``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 30000.0},
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: The words whose rows are a reranker's head, and one that its converter looks for.
RERANKER_WORDS = {"yes": 57, "no": 58, "|": 59}


def write_checkpoint(folder: Path, peer: Any) -> str:
    """transformers' model with random weights; the name of its class."""
    import torch

    from hf_models.writing import auto_config, randomize

    torch.manual_seed(0)
    # A copy: transformers writes into the dictionaries it is given.
    sizes = deepcopy({**SIZES, **peer.sizes})
    if peer.vision:
        tied = {"tie_word_embeddings": sizes["tie_word_embeddings"]}
        sizes = {"text_config": sizes, "vision_config": dict(peer.vision)} | tied
    config = auto_config().for_model(peer.model_type, **sizes)
    model = _build(config, peer)
    randomize(model)
    _round_to_blocks(model)
    model.save_pretrained(folder)
    if peer.transposed:
        _transpose(folder / "model.safetensors", peer.transposed)
    return json.loads((folder / "config.json").read_text())["architectures"][0]


def _build(config: Any, peer: Any) -> Any:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    from hf_models.writing import build

    if peer.pooling:
        return AutoModel.from_config(config, dtype=torch.float32)
    if peer.model_type == "xlm-roberta":
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return build(config)


def _transpose(path: Path, ends: Sequence[str]) -> None:
    """Matrices with these ends of names, as published checkpoints have them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(tuple(ends))]:
        tensors[name] = tensors[name].transpose(-1, -2).contiguous()
    save_file(tensors, path, {"format": "pt"})


def _round_to_blocks(model: Any) -> None:
    """Make matrices of numbers that Q8_0 has exactly, however conversion moves rows and columns.

    Whole numbers up to 127, times a power of two.  A block of it has its greatest as 127: one of
    any 32 neighbours in a row or a column is.
    """
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                rows, columns = map(torch.arange, weight.shape[-2:])
                greatest = (rows[:, None] + columns) % 32 == 0
                # Twice the deviation of random weights, or nearly, is the greatest.
                scale = 2.0 ** round(math.log2(2 / 127 * weight.shape[-1] ** -0.5))
                whole = (weight / scale).round().clamp(-127, 127)
                weight.copy_(scale * whole.where(~greatest, 127 * weight.sign()))


def publish(hf: Path, folder: Path, published: Any) -> str:
    """The checkpoint ``hf`` as the model's own code has it; the name of its class."""
    from safetensors.torch import load_file, save_file

    config = json.loads((hf / "config.json").read_text())
    config, tensors = published(config, load_file(hf / "model.safetensors"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return config["architectures"][0]


def convert(hf: Path, path: Path, model_class: str, peer: Any) -> None:
    """``path``: what llama.cpp makes of the checkpoint ``hf``, with the tests' tokenizer."""
    import conversion
    import gguf
    import torch

    from random_model import tokenizer_fields

    # A class of its own, whose settings are nobody else's, nor what it collects in the class.
    known = conversion.get_model_class(model_class)
    own = {name: copy(value) for name, value in vars(known).items() if type(value) in (list, dict)}
    own |= {"model_arch": known.model_arch, "no_mtp": not peer.drafts}
    converter = type(known.__name__, (known,), own)

    def set_vocab(self: Any) -> None:
        for key, value, kind in tokenizer_fields():
            if kind == gguf.GGUFValueType.ARRAY:
                self.gguf_writer.add_array(key, value)
            else:
                self.gguf_writer.add_key_value(key, value, kind)

    converter.set_vocab = set_vocab
    _write_tokenizer(hf, RERANKER_WORDS)
    if peer.pooling:
        _write_pooling(hf, peer.pooling, peer.dense)
    if peer.reranker:  # by which the converter knows one
        (hf / "README.md").write_text("# Qwen3-Reranker")
    options = {"eager": True, "fuse_qkv": peer.fuse_qkv}
    if peer.dense:
        options["sentence_transformers_dense_modules"] = True
    with torch.inference_mode():
        made = converter(hf, _file_type(path.stem), path, **options)
        if hasattr(made, "impl"):  # one class for several architectures
            made.impl.set_vocab = partial(set_vocab, made.impl)
        made.write()


def _file_type(name: str) -> Any:
    import gguf

    return getattr(gguf.LlamaFileType, "ALL_F32" if name == "F32" else f"MOSTLY_{name}")


def _write_pooling(hf: Path, pooling: str, dense: int) -> None:
    """How sentence-transformers would make an embedding of it."""
    kind = "sentence_transformers.models"
    modules = [{"idx": 1, "type": f"{kind}.Pooling", "path": "1_Pooling"}]
    if dense:
        sizes = (SIZES["hidden_size"], dense)
        for number, (columns, rows) in enumerate((sizes, sizes[::-1]), 2):
            path = f"{number}_Dense"
            modules.append({"idx": number, "type": f"{kind}.Dense", "path": path})
            _write_dense(hf / path, rows, columns)
    (hf / "modules.json").write_text(json.dumps(modules))
    (hf / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens")}
    (hf / "1_Pooling/config.json").write_text(json.dumps(modes | {"pooling_mode_lasttoken": False}))


def _write_dense(folder: Path, rows: int, columns: int) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    torch.manual_seed(rows)
    layer = torch.nn.Linear(columns, rows, bias=False)
    _round_to_blocks(layer)
    sizes = {"in_features": columns, "out_features": rows, "bias": False}
    (folder / "config.json").write_text(json.dumps(sizes))
    save_file({"linear.weight": layer.weight}, folder / "model.safetensors")


def _write_tokenizer(hf: Path, words: Mapping[str, int]) -> None:
    """Words by themselves: some converters count tokens, and one asks for certain ones."""
    from tokenizers import Tokenizer, models

    vocabulary = {str(i): i for i in set(range(SIZES["vocab_size"])) - set(words.values())}
    Tokenizer(models.WordLevel(vocabulary | words, "0")).save(str(hf / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (hf / "tokenizer_config.json").write_text(json.dumps(kind))


def edit_metadata(path: Path, drop: Sequence[str], add: Mapping[str, Any]) -> None:
    """Leave keys out and write others, all below the architecture's name."""
    import gguf

    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    aside = path.with_suffix(".aside")
    writer = gguf.GGUFWriter(aside, arch)
    gone = {"general.architecture", *(f"{arch}.{key}" for key in drop)}
    for key, found in reader.fields.items():
        if key.startswith("GGUF.") or key in gone:
            continue
        if found.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, found.contents())
        else:
            writer.add_key_value(key, found.contents(), found.types[0])
    for key, value in add.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(f"{arch}.{key}", value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(path)


def main(llama_cpp: str, out: str, types: str, *names: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    tests = Path(__file__).parents[1]
    sys.path[:0] = [llama_cpp, f"{llama_cpp}/gguf-py", str(tests)]
    from peers.published import PUBLISHED
    from peers.table import EVERY

    logging.disable(logging.WARNING)
    for name in names:
        peer, folder = EVERY[name], Path(out, name)
        try:
            checkpoint = folder / "hf"
            model_class = write_checkpoint(checkpoint, peer)
            if name in PUBLISHED:
                model_class = publish(checkpoint, folder / "published", PUBLISHED[name])
                checkpoint = folder / "published"
            for kind in types.split(","):
                path = folder / f"{kind}.gguf"
                convert(checkpoint, path, model_class, peer)
                if peer.drop or peer.add:
                    edit_metadata(path, peer.drop, peer.add)
        except Exception:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(*sys.argv[1:])
