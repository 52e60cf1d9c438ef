"""The weights of one rank before anything is loaded: their layouts and their bytes.

A layer's weight is put together as the engine does it (q, k and v; gate and up; experts), cut for
one rank, and given to the layouts of :mod:`ascend_gguf.npu` and :mod:`ascend_gguf.cpu`, which
allocate it on torch's ``meta`` device.  So sizes are those of loading.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from ascend_gguf.architectures import Placement, Target, architecture_of
from ascend_gguf.architectures.dimensions import head_size, size
from ascend_gguf.architectures.tensor_names import split_layer
from ascend_gguf.desk.chips import Chip
from ascend_gguf.ggml_types import BlockType
from ascend_gguf.npu.choice import Choice
from ascend_gguf.reader import GGUFFile, GGUFTensor
from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from ascend_gguf.weights.report import Holding
from ascend_gguf.weights.tuned import key

_ROWS, _COLS = 0, 1
_ATTENTION, _FFN = "attention input", "feed-forward input"
_EMBEDDING, _OUTPUT = "embedding", "output"
_EXPERTS = ("experts input", "experts output")

#: A tensor of the file, without its layer -> the engine's module that holds it, and what ranks
#: share of it.  Others are whole on every rank.
_MODULES: dict[str, tuple[str, int]] = {
    "token_embd": (_EMBEDDING, _ROWS),
    "output": (_OUTPUT, _ROWS),
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate"), (_ATTENTION, _ROWS)),
    "attn_q_b": ("latent queries", _ROWS),
    "attn_kv_b": ("latent keys and values", _ROWS),
    "attn_k_b": ("latent keys", _ROWS),
    "attn_v_b": ("latent values", _ROWS),
    **dict.fromkeys(("ssm_alpha", "ssm_beta"), ("state input", _ROWS)),
    "shortconv.in_proj": ("convolution input", _ROWS),
    "ssm_in": ("state input", _ROWS),
    **dict.fromkeys(("ssm_conv1d", "shortconv.conv"), ("convolution", _ROWS)),
    **dict.fromkeys(("attn_output", "ssm_out", "shortconv.out_proj"), ("attention output", _COLS)),
    **dict.fromkeys(("ffn_gate", "ffn_up"), (_FFN, _ROWS)),
    "ffn_down": ("feed-forward output", _COLS),
    **dict.fromkeys(("ffn_gate_shexp", "ffn_up_shexp"), ("shared experts input", _ROWS)),
    "ffn_down_shexp": ("shared experts output", _COLS),
    **dict.fromkeys(("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"), (_EXPERTS[0], _ROWS)),
    "ffn_down_exps": (_EXPERTS[1], _COLS),
}
#: Types of layers that have a state for each request, and nothing for each token.
_WITHOUT_KEYS = ("linear_attention", "mamba", "conv")
#: Rows of a vocabulary are a multiple of this in the engine (``DEFAULT_VOCAB_PADDING_SIZE``).
_VOCABULARY_PADDING = 64


class Ranks(NamedTuple):
    """Over how many devices a model is spread: tensor, expert and pipeline parallelism."""

    tp: int = 1
    ep: int = 1
    pp: int = 1


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
    """

    name: str
    axis: int | None
    parts: tuple[_Part, ...]
    dense: bool = False

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
    found: dict[tuple, list[tuple[GGUFTensor, Target]]] = {}
    for name, target in targets.items():
        layer, pattern = split_layer(name)
        stem = pattern.removeprefix("blk.{layer}.").removesuffix(".weight")
        module, axis = _MODULES.get(stem, (stem, None))
        number = None if layer is None else int(layer)
        # One without a name of its own is part of another, which is computed.
        dense = not target or isinstance(target, Placement) and target.dense
        found.setdefault((number, module, axis, dense), []).append((file.tensors[name], target))
    return [
        (layer, Module(name, axis, tuple(_parts(tensors, config)), dense))
        for (layer, name, axis, dense), tensors in found.items()
    ]


def _parts(tensors: Sequence[tuple[GGUFTensor, Target]], config: Any) -> Iterator[_Part]:
    for tensor, target in tensors:
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
    dtype: torch.dtype,
    choice: Choice,
) -> list[Holding]:
    """What the fullest rank holds."""
    held: list[list[Holding]] = []
    for stage in range(ranks.pp):
        counts = Counter(_stage(modules, config, ranks.pp, stage))
        found = {module: in_place(module, chip, ranks, dtype, choice) for module in counts}
        shared = {one for _, constants in found.values() for one in constants}
        held.append([found[module][0] for module in counts.elements()])
        held[-1] += [Holding("shared offsets", 0, nbytes) for *_, nbytes in shared]
    return max(held, key=lambda one: sum(holding.nbytes for holding in one))


def _stage(
    modules: Sequence[tuple[int | None, Module]], config: Any, stages: int, stage: int
) -> list[Module]:
    """The weights of a pipeline's stage: the last ones have a layer more where they are uneven."""
    layers = config.num_hidden_layers
    sizes = [layers // stages + (i >= stages - layers % stages) for i in range(stages)]
    first = sum(sizes[:stage])
    mine = range(first, first + sizes[stage])
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


def layout_of(module: Module, chip: Chip, choice: Choice, dtype: torch.dtype) -> str:
    """The name of the layout on one device."""
    if plain := _plain(module, dtype):
        return plain.layout
    weight, layouts = _weight(module, Ranks(), dtype), _layouts(module, chip, dtype, choice)
    return next(one.name for one in layouts if one.unsupported_reason(weight) is None)


@functools.lru_cache(maxsize=4096)
def in_place(
    module: Module, chip: Chip, ranks: Ranks, dtype: torch.dtype, choice: Choice
) -> tuple[Holding, tuple]:
    """The weight of one rank in the layout that it gets, and what it shares with others."""
    if plain := _plain(module, dtype):
        return plain, ()
    weight = _weight(module, ranks, dtype)
    with _OnMeta():
        layout = allocated(weight, _layouts(module, chip, dtype, choice))
    shared = tuple((name, t.shape, t.nbytes) for name, t in layout.shared.items())
    return Holding(layout.name, torch.Size(weight.shape).numel(), layout.nbytes), shared


def _plain(module: Module, dtype: torch.dtype) -> Holding | None:
    """A weight that no method for GGUF holds: vectors, of the model's dtype, and routers."""
    is_vector = {len(part.shape) for part in module.parts} == {1}
    is_float32 = {part.kind.dtype for part in module.parts} == {torch.float32}
    if not is_vector and (module.axis is not None or module.dense or not is_float32):
        return None
    count = sum(torch.Size(part.shape).numel() for part in module.parts)
    if is_vector:
        return Holding("vectors", count, count * dtype.itemsize)
    return Holding("dense", count, count * 4)


def _layouts(
    module: Module, chip: Chip, dtype: torch.dtype, choice: Choice
) -> tuple[type[Layout], ...]:
    if module.dense:
        return (Dense,)
    if module.name in _EXPERTS:
        return (*chip.expert_layouts(choice, dtype), Dense)
    exact, by_rows = module.name == _OUTPUT, module.name == _EMBEDDING
    return (*chip.linear_layouts(choice, dtype, exact, by_rows), Dense)


def to_tune(
    modules: Sequence[tuple[int | None, Module]], ranks: Ranks, dtype: torch.dtype
) -> dict[str, tuple[str, Module, Weight, int]]:
    """Weights that may be packed and are multiplied with, by what they are known by.

    Of each its role (see ``weights.tuned``), what it is, one rank's share, and how many there are.
    """
    found: dict[str, tuple[str, Module, Weight, int]] = {}
    tied = not any(module.name == _OUTPUT for _, module in modules)
    roles = {_OUTPUT: "output", _EMBEDDING: "embedding", **dict.fromkeys(_EXPERTS, "experts")}
    for _, module in modules:
        if tied and ranks.pp > 1 and module.name == _EMBEDDING:
            module = replace(module, name=_OUTPUT)  # the last stage's copy
        role = roles.get(module.name, "linear")
        if module.dense or _plain(module, dtype) or role == "embedding" and not tied:
            continue
        weight = _weight(module, ranks, dtype)
        name = key(role, weight)
        found[name] = (role, module, weight, found[name][3] + 1 if name in found else 1)
    return found


def nbytes_of(layout: type[Layout], weight: Weight) -> int:
    """Bytes on the device."""
    with _OnMeta():
        return layout.allocate(weight).nbytes


class _OnMeta(TorchFunctionMode):
    """What is allocated on the host has no memory."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")) == "cpu":
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _weight(module: Module, ranks: Ranks, dtype: torch.dtype) -> Weight:
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
            rows = min(rows, max(rows // width, part.least))
        columns = (0, cols // width if module.axis == _COLS else cols)
        # Nothing is ever written there, so it takes no memory.
        blocks = torch.empty(rows, part.kind.row_bytes(cols), dtype=torch.uint8)
        matrix = BlockTensor(blocks, part.kind.ggml_type, columns)
        pieces += [Piece(expert, row, 0, matrix) for expert in range(experts)]
        row, cols = row + matrix.shape[0], matrix.shape[1]
    if module.name in (_EMBEDDING, _OUTPUT):
        whole = module.parts[0].shape[0]
        row = -(-whole // _VOCABULARY_PADDING) * _VOCABULARY_PADDING // width
    return Weight(experts if is_experts else None, row, cols, dtype, tuple(pieces))


def cache_bytes(config: Any, ranks: Ranks, dtype: torch.dtype) -> int:
    """Bytes of the KV cache for one token on one rank."""
    types = getattr(config, "layer_types", None) or ()
    layers = -(-config.num_hidden_layers // ranks.pp)
    without = sum(kind in _WITHOUT_KEYS for kind in types)
    if without:
        layers = -(-(len(types) - without) // ranks.pp)
    if getattr(config, "kv_lora_rank", None):
        return layers * size("kv_lora+rope", config) * dtype.itemsize
    heads = max(1, config.num_key_value_heads // ranks.tp)
    return layers * 2 * heads * head_size(config) * dtype.itemsize
