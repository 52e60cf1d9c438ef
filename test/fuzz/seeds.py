"""Valid files to start from: of every architecture, block type and kind of tokenizer."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import GGUFValueType as Kind
from tokenizers import pre_tokenizers

from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from fuzz.container import Array, Contents, Entry, Tensor, data_size, entry, read
from hf_models import TINY, Tiny
from hf_models.writing import _SIZES, _type_of, auto_config, build, common_metadata, converted
from random_model import tokenizer_fields
from replacement_table import replacement_table

_DATA = Path(__file__).parents[1] / "data"

#: Rows are 512 weights at most, a multiple of every block.
_COLUMNS = 256

_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def seeds() -> list[Contents]:
    """All of them, in an order that does not change."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    vocabularies = list(_vocabularies())
    models = [*_architectures(), *_files(), *_block_types()]
    whole = [
        with_vocabulary(model, vocabularies[number % len(vocabularies)])
        for number, model in enumerate(models)
    ]
    # A vocabulary alone is quick to read: many more of those are tried.
    alone = [Contents((entry("general.architecture", "llama"), *keys), ()) for keys in vocabularies]
    return whole + alone


def with_vocabulary(model: Contents, vocabulary: tuple[Entry, ...]) -> Contents:
    """``model`` with another tokenizer."""
    kept = tuple(e for e in model.entries if not e.key.startswith(b"tokenizer."))
    return model._replace(entries=kept + vocabulary)


def split(contents: Contents) -> list[Contents]:
    """A model as two files."""
    half = len(contents.tensors) // 2
    parts = contents.tensors[:half], contents.tensors[half:]
    whole = len(contents.tensors)

    def keys(number: int) -> tuple[Entry, ...]:
        return (
            Entry(b"split.no", Kind.UINT16, number),
            Entry(b"split.count", Kind.UINT16, 2),
            Entry(b"split.tensors.count", Kind.INT32, whole),
        )

    return [
        Contents((contents.entries if not number else ()) + keys(number), tensors)
        for number, tensors in enumerate(parts)
    ]


def random_bytes(size: int, source: random.Random) -> bytes:
    """Blocks whose scales are mostly numbers."""
    return source.randbytes(min(size, 4096)).ljust(size, b"\x2b")


def _architectures() -> Iterator[Contents]:
    for tiny in TINY.values():
        yield _model(tiny)


def _model(tiny: Tiny) -> Contents:
    from transformers.core_model_loading import revert_weight_conversion

    config = auto_config().for_model(tiny.model_type, **deepcopy(_SIZES | tiny.sizes))
    with torch.device("meta"):  # shapes are all that counts
        model = build(config)
    checkpoint = revert_weight_conversion(model, model.state_dict())
    tensors = [
        _tensor(name, tensor, _type_of(tiny, name, tensor))
        for name, tensor in converted(tiny, checkpoint, config).items()
    ]
    for name, tensor in tiny.extra(config).items():
        data = tensor.float().numpy().tobytes()
        tensors.append(Tensor(name.encode(), tuple(tensor.shape)[::-1], 0, data))
    keys = common_metadata(config) | tiny.metadata(config)
    entries = [entry("general.architecture", tiny.arch), entry("general.name", "tiny")]
    entries += [_entry(f"{tiny.arch}.{k}", v) for k, v in keys.items() if v is not None]
    numbers = {name: torch.zeros(tensor.shape) for name, tensor in checkpoint.items()}
    entries += [_entry(key, values) for key, values in tiny.numbers(numbers).items()]
    return Contents(tuple(entries), tuple(tensors))


def _entry(key: str, value: Any) -> Entry:
    return entry(key, value if isinstance(value, str | float | bool | int) else list(value))


def _tensor(name: str, tensor: torch.Tensor, kind: int) -> Tensor:
    dims = tuple(tensor.shape)[::-1]
    data = random_bytes(data_size(dims, kind), random.Random(name))
    return Tensor(name.encode(), dims, int(kind), data)


def _files() -> Iterator[Contents]:
    for path in sorted(_DATA.glob("*.gguf")):
        yield read(path)


def _block_types() -> Iterator[Contents]:
    """A model of one block whose matrices are of one type."""
    model = next(_files())
    for kind in GGMLQuantizationType:
        if kind not in GGML_QUANT_SIZES:
            continue
        tensors = []
        for tensor in model.tensors:
            if len(tensor.dims) > 1:
                data = random_bytes(data_size(tensor.dims, kind), random.Random(int(kind)))
                tensor = tensor._replace(kind=int(kind), data=data)
            tensors.append(tensor)
        yield model._replace(tensors=tuple(tensors))


# --- vocabularies -----------------------------------------------------------------------------


def _vocabularies() -> Iterator[tuple[Entry, ...]]:
    yield _qwen()
    yield _sentencepiece()
    yield _raw_bpe()
    for number, pre in enumerate(PRE_TOKENIZERS):
        if number % 3 == 0 or pre in ("llama-bpe", "gpt-4o", "deepseek-v3", "smollm", "default"):
            yield _bytes(pre)
    for model in ("bert", "t5", "rwkv", "none"):
        yield (entry("tokenizer.ggml.model", model), *_sentencepiece()[1:], *_table())


def _qwen() -> tuple[Entry, ...]:
    keys = []
    for key, value, kind in tokenizer_fields():
        if kind == Kind.ARRAY:
            keys.append(entry(key, value))
        else:
            keys.append(Entry(key.encode(), kind, value.encode() if kind == 8 else value))
    return tuple(keys)


def _common(model: str, tokens: list[str], kinds: list[int], **more: Any) -> tuple[Entry, ...]:
    keys = {
        "model": model,
        "tokens": tokens,
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        **more,
    }
    found = [entry(f"tokenizer.ggml.{key}", value) for key, value in keys.items()]
    return (*found, entry("tokenizer.chat_template", _TEMPLATE))


def _sentencepiece() -> tuple[Entry, ...]:
    pieces = ["\u2581", *"abcdehlorw", "ll", "he", "lo", "\u2581he", "llo", "hello", "\u2581hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    scores = [0.0] * 259 + [-float(place) for place in range(len(pieces))]
    tokens, kinds, scores = [*tokens, "<|im_end|>"], [*kinds, 3], [*scores, 0.0]
    return _common("llama", tokens, kinds, scores=scores, add_space_prefix=True)


def _table() -> tuple[Entry, ...]:
    """The characters that a Unigram vocabulary replaces: "x" by "yy"."""
    raw = tuple(replacement_table())
    return (Entry(b"tokenizer.ggml.precompiled_charsmap", Kind.ARRAY, Array(Kind.UINT8, raw)),)


def _raw_bpe() -> tuple[Entry, ...]:
    pieces = ["\u2581", "h", "i", "hi", "\u2581hi", "\n", "\n\n"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * len(pieces)
    return _common("gemma4", tokens, kinds, merges=["h i", "\u2581 hi"])


def _bytes(pre: str) -> tuple[Entry, ...]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *letters, "he", "ll", "hell", "<|im_end|>", "<sep>"]
    kinds = [2, 3, 3] + [1] * (len(letters) + 3) + [3, 4]
    return _common("gpt2", tokens, kinds, pre=pre, merges=["h e", "l l", "he ll"])


#: Keys that a file may have, with the architecture's name left open: every one that gguf knows.
KNOWN_KEYS: tuple[str, ...] = tuple(
    sorted(
        {
            value
            for group in vars(gguf.Keys).values()
            if isinstance(group, type)
            for name, value in vars(group).items()
            if isinstance(value, str) and not name.startswith("__") and "." in value
        }
        | {
            "tokenizer.chat_template.tool_use",
            "tokenizer.ggml.eot_token_id",
            "tokenizer.ggml.eom_token_id",
            "split.no",
            "split.count",
        }
    )
)

EMPTY = Array(Kind.STRING, ())
