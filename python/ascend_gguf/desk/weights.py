"""The weights of one rank before anything is loaded: their layouts and their bytes.

A layer's weight is put together as the engine does it (q, k and v; gate and up; experts), cut for
one rank, and given to the layouts of :mod:`ascend_gguf.npu` and :mod:`ascend_gguf.cpu`, which
allocate it on torch's ``meta`` device.  So sizes are those of loading.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from ascend_gguf.architectures import Placement, Target, architecture_of
from ascend_gguf.architectures.dimensions import (
    first,
    head_size,
    is_kind,
    of_layer,
    size,
)
from ascend_gguf.architectures.tensor_names import split_layer
from ascend_gguf.desk.chips import Chip
from ascend_gguf.ggml_types import BlockType
from ascend_gguf.npu.choice import Choice
from ascend_gguf.ranks import Shares, uneven
from ascend_gguf.reader import GGUFFile, GGUFTensor
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.in_blocks import InBlocks
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from ascend_gguf.weights.report import Holding
from ascend_gguf.weights.tuned import key

_ROWS, _COLS = 0, 1
_ATTENTION, _FFN = "attention input", "feed-forward input"
_EMBEDDING, _OUTPUT = "embedding", "output"
_PER_LAYER = "per-layer embedding"
_EXPERTS = ("experts input", "experts output")
#: Roles of weights, see ``weights.tuned``; of others ``linear``.
_ROLES = {_OUTPUT: "output", **dict.fromkeys((_EMBEDDING, _PER_LAYER), "embedding")}
_ROLES |= dict.fromkeys(_EXPERTS, "experts")
#: The engine keeps dense copies of them, in another order (``post_load_weights`` of DeepSeek).
_LATENT = ("latent keys and values", "latent keys", "latent values")

#: A tensor of the file, without its layer -> the engine's module that holds it, and what ranks
#: share of it.  Others are whole on every rank.
_MODULES: dict[str, tuple[str, int]] = {
    "token_embd": (_EMBEDDING, _ROWS),
    "output": (_OUTPUT, _ROWS),
    "per_layer_token_embd": (_PER_LAYER, _ROWS),
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate"), (_ATTENTION, _ROWS)),
    "attn_q_b": ("latent queries", _ROWS),
    "attn_kv_b": (_LATENT[0], _ROWS),
    "attn_k_b": (_LATENT[1], _ROWS),
    "attn_v_b": (_LATENT[2], _ROWS),
    **dict.fromkeys(("ssm_alpha", "ssm_beta"), ("state input", _ROWS)),
    "shortconv.in_proj": ("convolution input", _ROWS),
    "shortconv.out_proj": ("convolution output", _COLS),
    "ssm_in": ("state input", _ROWS),
    "ssm_out": ("state output", _COLS),  # beside that of attention in Falcon-H1
    **dict.fromkeys(("ssm_conv1d", "shortconv.conv"), ("convolution", _ROWS)),
    "attn_output": ("attention output", _COLS),
    **dict.fromkeys(("ffn_gate", "ffn_up"), (_FFN, _ROWS)),
    "ffn_down": ("feed-forward output", _COLS),
    **dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), ("shared experts input", _ROWS)),
    "ffn_down_shexp": ("shared experts output", _COLS),
    **dict.fromkeys(("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"), (_EXPERTS[0], _ROWS)),
    "ffn_down_exps": (_EXPERTS[1], _COLS),
}
#: What lies between them: the dimension that ranks share.
_WIDTHS = {_FFN: "ffn", "feed-forward output": "ffn"} | dict.fromkeys(_EXPERTS, "expert_ffn")
_WIDTHS |= {f"shared experts {end}": "shared_ffn" for end in ("input", "output")}
#: On the CPU the engine pads these to a multiple of so much for each rank
#: (``adjust_config_with_unaligned_cpu_tp``).
_PADDED = (
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_PADDING = 32
#: Rows of a vocabulary are a multiple of this in the engine (``DEFAULT_VOCAB_PADDING_SIZE``).
_VOCABULARY_PADDING = 64


def itemsize(dtype: str) -> int:
    """Bytes of a number of a dtype of torch."""
    return 4 if dtype == "float32" else 2


class Ranks(NamedTuple):
    """Over how many devices a model is spread: tensor, expert and pipeline parallelism."""

    tp: int = 1
    ep: int = 1
    pp: int = 1

    def uneven(self, file: GGUFFile, config: Any) -> Iterator[str]:
        """What they cannot share evenly, in words."""
        is_latent = bool(getattr(config, "kv_lora_rank", None))
        heads = config.num_attention_heads, None if is_latent else config.num_key_value_heads
        return uneven(file.path, config, Shares(self.tp, self.ep, 1, self.tp), heads)


@dataclass(frozen=True)
class _Part:
    """A tensor, or the rows of one that belong together.

    Attributes:
        least: rows that are not shared further: those of a key-value head.
    """

    kind: BlockType
    shape: tuple[int, ...]
    least: int = 1


@dataclass(frozen=True)
class Module:
    """Tensors that become one weight.

    Attributes:
        name: what it is, in words.
        axis: what ranks share: rows, columns, or None.
        dense: never packed, because the model's loader computes with it.
        width: what ranks share with the padding, if there is any.
    """

    name: str
    axis: int | None
    parts: tuple[_Part, ...]
    dense: bool = False
    width: int | None = None

    @property
    def types(self) -> str:
        """The types of its tensors."""
        return ", ".join(dict.fromkeys(part.kind.name for part in self.parts))


def modules_of(file: GGUFFile, config: Any) -> list[tuple[int | None, Module]]:
    """Every weight of the model with its layer; None for those of no layer.

    Raises:
        GGUFError: as :meth:`Architecture.name_map`.
    """
    targets = architecture_of(file).name_map(file, config)
    placed = [target for target in targets.values() if isinstance(target, Placement)]
    beside = {name for target in placed for name in target.beside}
    found: dict[tuple, list[tuple[GGUFTensor, Target]]] = {}
    for name, target in targets.items():
        if not target and name not in beside:  # the model has no such weight
            continue
        layer, pattern = split_layer(name)
        stem = pattern.removeprefix("blk.{layer}.").removesuffix(".weight")
        module, axis = _MODULES.get(stem, (stem, None))
        number = None if layer is None else int(layer)
        # One without a name of its own is part of another, which is computed.
        dense = not target or isinstance(target, Placement) and target.dense
        found.setdefault((number, module, axis, dense), []).append((file.tensors[name], target))
    return [
        (layer, Module(name, axis, tuple(_parts(tensors, config, layer)), dense))
        for (layer, name, axis, dense), tensors in found.items()
    ]


def _parts(
    tensors: Sequence[tuple[GGUFTensor, Target]], config: Any, layer: int | None
) -> Iterator[_Part]:
    shares = layer is not None and is_kind("shared_kv", config, layer)
    config = of_layer(config, layer)
    if first(config, "attention_k_eq_v") and not any(".attn_v." in t.name for t, _ in tensors):
        tensors = [*tensors, *(one for one in tensors if ".attn_k." in one[0].name)]  # as values
    for tensor, target in tensors:
        if shares and ".attn_q." in tensor.name:  # keys and values that nothing fills
            absent = size("kv", config), tensor.shape[-1]
            yield from [_Part(tensor.type, absent, head_size(config))] * 2
        shape = tensor.shape or (1,)
        rows = target.rows if isinstance(target, Placement) else None
        is_kv = ".attn_k." in tensor.name or ".attn_v." in tensor.name
        if rows is None or len(shape) != 2 or len(rows) != 3:
            yield _Part(tensor.type, shape, head_size(config) if is_kv else 1)
            continue
        for i, count in enumerate(rows):  # q, k and v in one
            yield _Part(tensor.type, (count, shape[1]), head_size(config) if i else 1)


def holdings(
    modules: Sequence[tuple[int | None, Module]],
    config: Any,
    chip: Chip,
    ranks: Ranks,
    dtype: str,
    choice: Choice,
) -> list[Holding]:
    """What the fullest rank holds."""
    if not chip.is_npu and ranks.tp > 1:
        padded = _padded(config, ranks.tp)
        modules = [(layer, _shared_as(module, config, padded)) for layer, module in modules]
    held: list[list[Holding]] = []
    for stage in range(ranks.pp):
        counts = Counter(_stage(modules, config, ranks.pp, stage))
        found = {module: in_place(module, chip, ranks, dtype, choice) for module in counts}
        shared = {one for _, constants in found.values() for one in constants}
        held.append([one for module in counts.elements() for one in found[module][0]])
        held[-1] += [Holding("shared offsets", 0, nbytes) for *_, nbytes in shared]
    return max(held, key=lambda one: sum(holding.nbytes for holding in one))


def _padded(config: Any, tp: int) -> Any:
    """The configuration as the engine changes it for ranks of the CPU."""
    found, multiple = copy(config), tp * _PADDING
    for name in _PADDED:
        if isinstance(value := getattr(config, name, None), int):
            setattr(found, name, -(-value // multiple) * multiple)
    return found


def _shared_as(module: Module, config: Any, padded: Any) -> Module:
    """The module with the width that ranks share, if that is one which is padded."""
    if module.name not in _WIDTHS:
        return module
    width, whole = (size(_WIDTHS[module.name], one) for one in (config, padded))
    found = module.parts[0].shape[-1 if module.axis == _COLS else -2]
    return replace(module, width=whole) if found == width != whole else module


def layers_of_stages(config: Any, stages: int) -> list[range]:
    """Those of each stage of a pipeline: the last ones have one more where they are uneven."""
    least, more = divmod(config.num_hidden_layers, stages)
    counts = [least] * (stages - more) + [least + 1] * more
    ends = accumulate(counts, initial=0)
    return [range(first, last) for first, last in pairwise(ends)]


def _stage(
    modules: Sequence[tuple[int | None, Module]], config: Any, stages: int, stage: int
) -> list[Module]:
    """The weights of a pipeline's stage."""
    mine = layers_of_stages(config, stages)[stage]
    ends = [module for layer, module in modules if layer is None]
    embedding = [module for module in ends if module.name == _EMBEDDING]
    found = [module for layer, module in modules if layer in mine]
    if stage == 0:
        found += embedding
    if stage == stages - 1:
        found += [module for module in ends if module.name != _EMBEDDING]
        if stages > 1 and not any(module.name == _OUTPUT for module in ends):
            found += [replace(module, name=_OUTPUT) for module in embedding]  # a copy
    return found


def layout_of(module: Module, chip: Chip, choice: Choice, dtype: str) -> str:
    """The name of the layout on one device."""
    if plain := _plain(module, dtype):
        return plain.layout
    weight, layouts = _weight(module, Ranks()), _layouts(module, chip, dtype, choice)
    return next(one.name for one in layouts if one.unsupported_reason(weight) is None)


@functools.lru_cache(maxsize=4096)
def in_place(
    module: Module, chip: Chip, ranks: Ranks, dtype: str, choice: Choice
) -> tuple[list[Holding], tuple]:
    """The weight of one rank in the layout that it gets, and what it shares with others."""
    if plain := _plain(module, dtype):
        return [plain], ()
    weight = _weight(module, ranks, getattr(torch, dtype))
    with _on_meta():
        layout = allocated(weight, _layouts(module, chip, dtype, choice))
    shared = tuple((name, t.shape, t.nbytes) for name, t in layout.shared.items())
    count = prod(weight.shape)
    held = [Holding(layout.name, count, layout.nbytes)]
    if module.name in _LATENT:
        held.append(Holding("latent copies", 0, count * itemsize(dtype)))
    return held, shared


def _plain(module: Module, dtype: str) -> Holding | None:
    """A weight that no method for GGUF holds: vectors, of the model's dtype, and routers."""
    is_vector = {len(part.shape) for part in module.parts} == {1}
    is_float32 = {part.kind.dtype_name for part in module.parts} == {"float32"}
    if not is_vector and (module.axis is not None or module.dense or not is_float32):
        return None
    count = sum(prod(part.shape) for part in module.parts)
    if is_vector:
        return Holding("vectors", count, count * itemsize(dtype))
    return Holding("dense", count, count * 4)


def _layouts(module: Module, chip: Chip, dtype: str, choice: Choice) -> tuple[type[Layout], ...]:
    if module.dense:
        return (Dense,)
    return (*chip.layouts(_ROLES.get(module.name, "linear"), choice, dtype), Dense)


def to_tune(
    modules: Sequence[tuple[int | None, Module]], ranks: Ranks, dtype: str
) -> dict[str, tuple[str, Module, Weight, int]]:
    """Weights that may be packed and are multiplied with, by what they are known by.

    Of each its role (see ``weights.tuned``), what it is, one rank's share, and how many there are.
    """
    found: dict[str, tuple[str, Module, Weight, int]] = {}
    tied = not any(module.name == _OUTPUT for _, module in modules)
    for _, module in modules:
        if tied and ranks.pp > 1 and module.name == _EMBEDDING:
            module = replace(module, name=_OUTPUT)  # the last stage's copy
        role = _ROLES.get(module.name, "linear")
        if module.dense or _plain(module, dtype) or role == "embedding" and not tied:
            continue
        weight = _weight(module, ranks, getattr(torch, dtype))
        name = key(role, weight)
        found[name] = (role, module, weight, found[name][3] + 1 if name in found else 1)
    return found


def nbytes_of(layout: type[Layout], weight: Weight) -> int:
    """Bytes on the device."""
    with _on_meta():
        return layout.allocate(weight).nbytes


def _on_meta() -> AbstractContextManager:
    """A context in which what is allocated on the host has no memory."""
    from torch.overrides import TorchFunctionMode

    class OnMeta(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device")) == "cpu":
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return OnMeta()


class _Absent(InBlocks):
    """What layouts ask of a :class:`.BlockTensor` before it is read, without a byte of it."""

    factor = 1.0

    def __init__(self, kind: BlockType, rows: int, cols: int, columns: tuple[int, int]) -> None:
        self.block_type, self.columns = kind, columns
        self.blocks = np.broadcast_to(np.uint8(0), (rows, kind.row_bytes(cols)))  # no memory
        self.shape = rows, columns[1] - columns[0]

    def __len__(self) -> int:
        return self.shape[0]


def _weight(module: Module, ranks: Ranks, dtype: Any = None) -> Weight:
    """One rank's share.  No rule of a layout asks for the dtype, so it may be missing."""
    is_experts = module.name in _EXPERTS
    width = ranks.tp // ranks.ep if is_experts else ranks.tp
    pieces, row, cols = [], 0, 0
    experts = 1
    for part in module.parts:
        *stacked, rows, cols = (1, *part.shape) if len(part.shape) == 1 else part.shape
        experts = stacked[0] // ranks.ep if is_experts else 1
        if stacked and not is_experts:  # heads one by one
            rows *= stacked[0]
        if module.axis == _ROWS:
            rows = min(rows, max((module.width or rows) // width, part.least))
        columns = (0, min(cols, (module.width or cols) // width) if module.axis == _COLS else cols)
        matrix: Any = _Absent(part.kind, rows, cols, columns)
        pieces += [Piece(expert, row, 0, matrix) for expert in range(experts)]
        row, cols = row + matrix.shape[0], matrix.shape[1]
    if module.name in (_EMBEDDING, _OUTPUT, _PER_LAYER):
        whole = module.parts[0].shape[0]
        row = -(-whole // _VOCABULARY_PADDING) * _VOCABULARY_PADDING // width
    return Weight(experts if is_experts else None, row, cols, dtype, tuple(pieces))
