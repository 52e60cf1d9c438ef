"""Everything that happens to a file before and while it is loaded, in one process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import PreTrainedTokenizerFast

from ascend_gguf import load_config, load_generation_config, load_tokenizer, open_gguf
from ascend_gguf.architectures import Target, architecture_of
from ascend_gguf.config import describe
from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.experts import GroupedInt4, GroupedNibblePlanes, GroupedWidePlanes
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8
from ascend_gguf.npu.nibble_planes import NibblePlanes, WidePlanes
from ascend_gguf.srt.model_loader.weight_utils import gguf_quant_weights_iterator
from ascend_gguf.tokenizer import stop_token_ids
from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.layout import Layout, Piece
from ascend_gguf.weights.layout import Weight as LayoutWeight

_LAYOUTS: tuple[type[Layout], ...] = (Int4, Int4Rows, NibblePlanes, WidePlanes, Int8, Blocks)
_EXPERT_LAYOUTS: tuple[type[Layout], ...] = (
    *(GroupedInt4, GroupedWidePlanes, GroupedNibblePlanes, Int8, Blocks),
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Rows of a tensor that are decoded and laid out.
_ROWS = 64

_TEXTS = (
    "Hello, world! 1234567 it's  two\n\n\tlines<|im_end|></s> <0x41> \u2581",
    "na\u00efve \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \x00\x1f\x7f\u00ad\ufdd0"
    " \U0001f636\u200d\U0001f32b\ufe0f",
    " " * 40 + "a" * 300 + "\r\n" * 20,
)
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "1 + 1?"},
]


class Fault(Exception):
    """Something other than GGUFError came out; ``__cause__`` is what did."""


def check(path: Path, source: random.Random, enter: Callable[[str], None]) -> dict[str, str | None]:
    """Load ``path`` in every way.

    Args:
        source: chooses which tensors are laid out, and how.
        enter: told the name of each step before it begins.

    Returns:
        By step, the error that refused the file; None where there was none.

    Raises:
        Fault: in a step something else was raised than GGUFError, or its text is not one line.
    """
    outcome: dict[str, str | None] = {}
    made: dict[str, Any] = {}
    for name, step in _STEPS.items():
        enter(name)
        if _NEEDS.get(name, "open") not in {"open", *made}:
            continue
        try:
            made[name] = step(path, source, made)
            outcome[name] = None
        except GGUFError as error:
            text = str(error)
            if not text.isprintable() or len(text) > _LONGEST_LINE:
                raise Fault(f"{name}: the error is not one readable line: {text!r}") from error
            outcome[name] = text
        except Exception as error:
            raise Fault(f"{name}: {type(error).__name__}: {error}") from error
        if name == "open" and outcome[name]:
            break
    return outcome


#: An error is printed in one go; the table of architectures is part of some.
_LONGEST_LINE = 4000


def _open(path: Path, source: random.Random, made: dict) -> None:
    file = open_gguf(path)
    open_gguf(path.parent)  # the folder of one model
    for tensor in file.tensors.values():
        assert tensor.blocks.numel() == tensor.nbytes


def _config(path: Path, source: random.Random, made: dict) -> Mapping[str, Target]:
    file = open_gguf(path)
    names = architecture_of(file).name_map(file, load_config(path))
    # Without transformers nothing else comes out.
    assert architecture_of(file).name_map(file, describe(path)).keys() == names.keys()
    return names


def _weights(path: Path, source: random.Random, made: dict) -> None:
    """The weights as the engine's loader gets them."""
    for _, weight in gguf_quant_weights_iterator(str(path), made["config"]):
        if isinstance(weight, BlockTensor):
            weight[:_ROWS].dequantize()


def _layouts(path: Path, source: random.Random, made: dict) -> None:
    tensors = [t for t in open_gguf(path).tensors.values() if t.shape]
    for tensor in source.sample(tensors, min(3, len(tensors))):
        if not tensor.type.is_quantized:
            tensor.values.float().sum()
        if tensor.type.decoder is None:
            continue
        rows = BlockTensor(tensor.blocks, tensor.type.ggml_type)[:_ROWS]
        rows.dequantize()
        if rows.dim() == 2:
            _lay_out(rows, source)


def _lay_out(rows: BlockTensor, source: random.Random) -> None:
    many = source.random() < 0.3
    piece = Piece(0, 0, 0, rows)
    weight = LayoutWeight(1 if many else None, *rows.shape, source.choice(_DTYPES), [piece])
    layout = source.choice(_EXPERT_LAYOUTS if many else _LAYOUTS)
    if layout.unsupported_reason(weight) is None:
        made = layout.allocate(weight)
        made.put(piece)
        made.sample(slice(0, len(rows)))


def _tokenizer(path: Path, source: random.Random, made: dict) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(path)
    size = len(tokenizer)
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        assert all(0 <= number < size for number in ids), "a token that there is not"
        tokenizer.decode(ids)
    tokenizer.decode([source.randrange(size) for _ in range(20)] if size else [])
    tokenizer.convert_ids_to_tokens(list(range(min(size, 50))))
    assert all(0 <= number < size for number in stop_token_ids(path))
    return tokenizer


def _template(path: Path, source: random.Random, made: dict) -> None:
    tokenizer = made["tokenizer"]
    if tokenizer.chat_template is None:
        return
    try:
        tokenizer.apply_chat_template(_MESSAGES, tokenize=False, add_generation_prompt=True)
    except _OF_TEMPLATES:
        pass  # what is said to a request


#: What a template may raise: its own refusal, and what Python says of a wrong expression.
_OF_TEMPLATES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)


def _generation(path: Path, source: random.Random, made: dict) -> None:
    load_generation_config(path)


#: What each step does, given the path, a source of random numbers and what the others made.
_STEPS: dict[str, Callable[[Path, random.Random, dict[str, Any]], Any]] = {
    "open": _open,
    "config": _config,
    "tokenizer": _tokenizer,
    "template": _template,
    "generation": _generation,
    "weights": _weights,
    "layouts": _layouts,
}


#: Steps that are left out where another refused the file.
_NEEDS = {"template": "tokenizer", "weights": "config"}


def warm_up(paths: Iterator[Path]) -> None:
    """Compile and import what the steps need, before processes are forked."""
    for path in paths:
        check(path, random.Random(0), lambda step: None)
