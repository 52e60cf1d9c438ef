"""A model architecture, as data.

An :class:`Architecture` says how a GGUF file's metadata becomes a transformers configuration and
which tensor of the file is which tensor of the Hugging Face model.  Names are those of
``gguf/constants.py`` (MODEL_ARCH, KEYS, MODEL_TENSOR) and of the transformers model's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.dimensions import is_kind, of_layer, size
from ascend_gguf.architectures.fields import Field
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.tensor_names import is_left_out, is_of_head, split_layer
from ascend_gguf.architectures.transforms import Transform
from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, GGUFTensor

if TYPE_CHECKING:
    import torch

_NOT_KNOWN = (
    "It may be of another variant of the model, or the file newer than ascend-gguf: see the list "
    "of models in the documentation."
)


@dataclass(frozen=True)
class Placement:
    """Where a tensor of the file goes in the model, if a name does not say enough.

    Args:
        names: the model's tensors, as in :attr:`Rename.hf`; none for a tensor that is in the
            :attr:`beside` of another.
        rows: rows of each name; equal shares if None.
        undo: from the tensor as stored, and those beside it, to the model's tensor.
        beside: names in the file of other tensors that ``undo`` takes, decoded.
        dense: the model's loader computes with it: never packed.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] | None = None
    undo: Callable[..., torch.Tensor] | None = None
    beside: tuple[str, ...] = ()
    dense: bool = False


#: A tensor's place in the model: its name, the names of its equal shares, or a Placement.
Target = str | tuple[str, ...] | Placement


@dataclass(frozen=True)
class Rename:
    """One tensor of the file and the Hugging Face tensor it stands for.

    Args:
        gguf: name in the file; ``{layer}`` runs over the layers.
        shape: its dimensions, outermost first, as words of :mod:`dimensions`; ``2*ffn`` is twice
            ``ffn``.
        hf: name in the model; ``{expert}`` runs over the experts stacked in the tensor's first
            dimension.  Several names split the tensor's rows, equally or as :attr:`rows` says.
            None: its content is in the configuration.
        optional: the file may lack it.
        unless: the tensor may be missing if the one of this ``gguf`` name is there.
        kind: the kind of layer that has it, words of :mod:`dimensions`; every layer by default.
            Of a tensor of no layer, the kind of model.
        rows: for several names, the dimensions of their rows.
        undo: undoes what conversion did to the tensor.
        beside: the ``gguf`` names of other tensors that ``undo`` takes, decoded.
        dense: the model's loader computes with it: never packed.
        layer: the layer whose sizes count, once it is known.
    """

    gguf: str
    shape: str
    hf: str | tuple[str, ...]
    optional: bool = False
    unless: str | None = None
    kind: str = ""
    rows: str | None = None
    undo: Transform | None = None
    beside: tuple[str, ...] = ()
    dense: bool = False
    layer: int | None = field(default=None, compare=False)

    def expected_shape(self, config: Any) -> tuple[int, ...]:
        """:attr:`shape` under a transformers configuration."""
        config = of_layer(config, self.layer)
        return tuple(size(words, config) for words in self.shape.split())

    def of_layer(self, layer: int | str) -> Rename:
        """This rule with the layer's number filled in."""

        def fill(name: str) -> str:
            return name.replace("{layer}", str(layer))

        return replace(
            self.renamed(fill),
            layer=int(layer),
            gguf=fill(self.gguf),
            unless=self.unless and fill(self.unless),
            beside=tuple(map(fill, self.beside)),
        )

    def renamed(self, change: Callable[[str], str]) -> Rename:
        """This rule with other names in the model."""
        names = change(self.hf) if isinstance(self.hf, str) else tuple(map(change, self.hf))
        return replace(self, hf=names)

    def target(self, config: Any) -> Target:
        """Where the tensor goes in a model of a transformers configuration."""
        if not (self.rows or self.undo or self.dense):
            return self.hf
        config = of_layer(config, self.layer)
        return Placement(
            names=self.hf if isinstance(self.hf, tuple) else (self.hf,),
            rows=None
            if self.rows is None
            else tuple(size(words, config) for words in self.rows.split()),
            undo=self.undo and partial(self.undo, config=config),
            beside=self.beside,
            dense=self.dense,
        )


def per_layer(
    gguf: str,
    shape: str,
    *hf: str,
    unless: str | None = None,
    beside: tuple[str, ...] = (),
    **options: Any,
) -> Rename:
    """A :class:`Rename` of a tensor per layer: ``blk.N.`` and ``model.layers.N.``."""
    names = tuple(f"model.layers.{{layer}}.{name}" for name in hf)
    return Rename(
        f"blk.{{layer}}.{gguf}",
        shape,
        names[0] if len(names) == 1 else names,
        unless=unless and f"blk.{{layer}}.{unless}",
        beside=tuple(f"blk.{{layer}}.{name}" for name in beside),
        **options,
    )


#: ``(file, attributes so far)`` to more attributes.
Derivation = Callable[[GGUFFile, Attributes], Attributes]


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``, or those of its files that :attr:`mark` accepts.

    Args:
        name: that value.
        model_type: transformers' ``model_type``.
        fields: metadata key below ``name.`` to attribute of the configuration; a :class:`Field` if
            it is not an integer of at least one, or has a usable default.
        defaults: attributes for missing keys, as llama.cpp has them (``load_arch_hparams``,
            ``llama-hparams.h``); often not transformers' defaults.
        reads: further keys that it follows, beside those of ``rope`` and ``derived``
            (:func:`.metadata.reads`).
        tensors: the tensors of such a model.
        constants: attributes of the configuration that the architecture fixes.
        fixed: keys that the model does not follow, with the values that describe it anyway.
        rope: the RoPE parameters, from the file and the attributes.
        derived: attributes that need more than one key, computed in this order.
        mark: whether a file of this name is of this architecture.
        causal_lm: the model's class, if it is not the one of transformers' table; of several names
            the engine builds the first that it has, and takes the model for the first of all.
        embeds: it gives embeddings and no text.
        beyond_float16: why such a model overflows float16, as a clause; float16 is refused then.
    """

    name: str
    model_type: str
    fields: Mapping[str, str | Field]
    tensors: tuple[Rename, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    constants: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, tuple] = field(default_factory=dict)
    rope: Derivation = rope.parameters
    derived: tuple[Derivation, ...] = ()
    mark: Callable[[GGUFFile], bool] = lambda file: True
    causal_lm: str | tuple[str, ...] | None = None
    embeds: bool = False
    beyond_float16: str | None = None

    def describes(self, file: GGUFFile) -> bool:
        """True if ``file`` is of this architecture."""
        return file.architecture == self.name and self.mark(file)

    @cached_property
    def obeyed(self) -> frozenset[str]:
        """Every key below the name that the model's configuration follows."""
        keys = frozenset() if self.rope is rope.absent else rope.KEYS
        followed = (getattr(function, "reads", ()) for function in (self.rope, *self.derived))
        return keys.union(self.fields, self.reads, {"nextn_predict_layers"}, *followed)

    def rename(self, tensor_name: str, config: Any = None) -> Rename | None:
        """The rule for a tensor of the file, with the layer's number filled in; None if unknown.

        Args:
            config: of the model, if layers of different kinds have a tensor of the same name.
        """
        layer, pattern = split_layer(tensor_name)
        rules = self._by_name.get(pattern, ())
        if layer is None or not rules:
            return rules[0] if rules else None
        number = int(layer)
        if config is not None and len(rules) > 1 and number < config.num_hidden_layers:
            rules = [rule for rule in rules if is_kind(rule.kind, config, number)] or rules
        return rules[0].of_layer(layer)

    def name_map(self, file: GGUFFile, config: Any) -> dict[str, Target]:
        """The place in the model of every tensor of ``file``, by GGUF name.

        Args:
            config: the model's transformers configuration, which says what shapes to expect.

        Raises:
            GGUFError: the file has an unknown tensor or one of the wrong shape, or lacks one.
        """
        layers = range(config.num_hidden_layers)
        return self.map_of(file, file.tensors.values(), layers, config)

    def map_of(
        self, file: GGUFFile, tensors: Iterable[GGUFTensor], layers: Iterable[int], config: Any
    ) -> dict[str, Target]:
        """As :meth:`name_map`, of some of its tensors, which are all those of ``layers``."""
        names = {}
        for tensor in tensors:
            if is_left_out(tensor, config) or self._is_scale(tensor, file):
                continue
            names[tensor.name] = self._checked_rule(tensor, config).target(config)
        for rule in self._rules(layers, config):
            if rule.gguf in names and rule.unless in names:
                raise GGUFError(
                    f"the file holds the same weights twice, here and in {rule.unless}",
                    file=file.path,
                    tensor=rule.gguf,
                    hint=CONVERT_AGAIN,
                )
            if not (rule.optional or rule.gguf in names or rule.unless in names):
                raise GGUFError(
                    "the file lacks this tensor",
                    file=file.path,
                    tensor=rule.gguf,
                    found=f"{len(file.tensors)} other tensors",
                    expected=f"shape {rule.expected_shape(config)}",
                    hint="The file may be incomplete, or of another variant of the model: download "
                    "it again, or convert the model again with a current llama.cpp.",
                )
        return names

    def _is_scale(self, tensor: GGUFTensor, file: GGUFFile) -> bool:
        """True for the scale of another tensor; the model has no such tensor."""
        weight = file.tensors.get(tensor.name.removesuffix(".scale") + ".weight")
        if not tensor.name.endswith(".scale") or weight is None or self.rename(tensor.name):
            return False
        if len(weight.shape) < 2:  # beside a norm it is something else
            return False
        count = weight.shape[0] if len(weight.shape) == 3 else 1
        is_right = math.prod(tensor.shape) == count and not tensor.type.is_quantized
        if not is_right or not np.isfinite(tensor.array()).all():
            raise tensor.error(
                "the scale of a weight is not one finite number, or one per expert",
                found=f"{tensor.type.name} of shape {tensor.shape}",
                expected=f"shape {(count,)}",
                hint=CONVERT_AGAIN,
            )
        return True

    def _checked_rule(self, tensor: GGUFTensor, config: Any) -> Rename:
        rule = self.rename(tensor.name, config)
        layer, _ = split_layer(tensor.name)
        layers = config.num_hidden_layers
        if rule is None and is_of_head(tensor.name):
            raise tensor.error(
                "the file holds a reranker or classifier that is not supported",
                found=f"{tensor.type.name} of shape {tuple(tensor.shape)}",
                expected="architecture qwen3 or qwen3vl, pooling_type 4 (rank) and only "
                "cls.output.weight; or bert, with cls.* beside cls.output.*",
                hint="Serve the original model in Hugging Face format.",
            )
        if rule is None or not (
            int(layer or 0) < layers and is_kind(rule.kind, config, int(layer or 0))
        ):
            raise tensor.error(
                "the model has no such tensor",
                found=f"{tensor.type.name} of shape {tuple(tensor.shape)}",
                expected=f"the tensors of a {self.name} model with {layers} blocks",
                hint=_NOT_KNOWN,
            )
        if tensor.type.decoder is None and tensor.type.dtype_name != "float64":
            raise tensor.error(
                "weights of this type are not supported",
                found=tensor.type.name,
                expected="a type that the documentation lists",
                hint="Use a file of the model in another type, such as Q4_K_M or Q8_0.",
            )
        expected = rule.expected_shape(config)
        # A vector may be written as a matrix of one row, unless it is transformed or split.
        is_whole = rule.undo is None and isinstance(rule.hf, str)
        one_row = (1, *expected) if is_whole and len(expected) == 1 else None
        # llama-quantize leaves out outer dimensions of one.
        outer = next((i for i, number in enumerate(expected) if number != 1), 0)
        vector = expected[outer:] if rule.undo else None
        if tensor.shape not in (expected, one_row, vector):
            raise tensor.error(
                "the shape does not fit the model's configuration",
                found=tuple(tensor.shape),
                expected=f"{expected} ({rule.shape})",
                hint=CONVERT_AGAIN,
            )
        return rule

    def _rules(self, layers: Iterable[int], config: Any) -> Iterator[Rename]:
        for rule in self.tensors:
            if "{layer}" not in rule.gguf:
                if is_kind(rule.kind, config, 0):
                    yield rule
                continue
            for layer in layers:
                if is_kind(rule.kind, config, layer):
                    yield rule.of_layer(layer)

    @cached_property
    def _by_name(self) -> dict[str, list[Rename]]:
        found: dict[str, list[Rename]] = {}
        for rule in self.tensors:
            found.setdefault(rule.gguf, []).append(rule)
        return found
