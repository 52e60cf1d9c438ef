"""What the project knows of one model architecture, as data.

An :class:`Architecture` says how a GGUF file's metadata becomes a transformers configuration and
which tensor of the file is which tensor of the Hugging Face model.  Names are those of
``gguf/constants.py`` (MODEL_ARCH, KEYS, MODEL_TENSOR) and of the transformers model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, GGUFTensor

#: Tensors that any file may hold and no model needs: what they say is in the configuration.
_IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")

#: Dimension of a shape in the table -> its size under a transformers configuration.
_DIMENSIONS = {
    "vocab": lambda c: c.vocab_size,
    "hidden": lambda c: c.hidden_size,
    "ffn": lambda c: c.intermediate_size,
    "head": lambda c: _head_size(c),
    "q": lambda c: c.num_attention_heads * _head_size(c),
    "kv": lambda c: c.num_key_value_heads * _head_size(c),
    "experts": lambda c: c.num_experts,
    "expert_ffn": lambda c: c.moe_intermediate_size,
    "shared_ffn": lambda c: c.shared_expert_intermediate_size,
}


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Rename:
    """One tensor of the file and the Hugging Face tensor it stands for.

    Args:
        gguf: name in the file; ``{layer}`` runs over the blocks.
        shape: its dimensions, outermost first, as words of ``_DIMENSIONS``; ``2*ffn`` is twice
            ``ffn``.
        hf: name in the model; ``{expert}`` runs over the experts packed in the tensor's first
            dimension.  Several names split the tensor's rows into that many equal parts.
        optional: the file may lack it.
        unless: another ``gguf`` name whose presence excuses this one's absence.
    """

    gguf: str
    shape: str
    hf: str | tuple[str, ...]
    optional: bool = False
    unless: str | None = None

    def expected_shape(self, config: Any) -> tuple[int, ...]:
        """:attr:`shape` under a transformers configuration."""
        return tuple(
            prod(int(f) if f.isdigit() else _DIMENSIONS[f](config) for f in word.split("*"))
            for word in self.shape.split()
        )

    def of_layer(self, layer: int | str) -> Rename:
        """This rule with the block's number filled in."""
        hf = self.hf if isinstance(self.hf, tuple) else (self.hf,)
        filled = tuple(name.replace("{layer}", str(layer)) for name in hf)
        return replace(
            self,
            gguf=self.gguf.replace("{layer}", str(layer)),
            hf=filled if isinstance(self.hf, tuple) else filled[0],
            unless=self.unless and self.unless.replace("{layer}", str(layer)),
        )


def per_layer(gguf: str, shape: str, *hf: str, unless: str | None = None, **options) -> Rename:
    """A :class:`Rename` of a tensor that each block has: ``blk.N.`` and ``model.layers.N.``."""
    names = tuple(f"model.layers.{{layer}}.{name}" for name in hf)
    return Rename(
        f"blk.{{layer}}.{gguf}",
        shape,
        names[0] if len(names) == 1 else names,
        unless=unless and f"blk.{{layer}}.{unless}",
        **options,
    )


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``.

    Args:
        name: that value.
        model_type: transformers' ``model_type``.
        fields: key of the file's metadata below ``name.`` to attribute of the configuration; a key
            that the file lacks leaves the attribute at transformers' default.
        required: the keys of ``fields`` that no default can stand in for.
        tensors: the tensors of such a model.
        constants: attributes of the configuration that the architecture fixes.
    """

    name: str
    model_type: str
    fields: Mapping[str, str]
    required: frozenset[str]
    tensors: tuple[Rename, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)

    def rename(self, tensor_name: str) -> Rename | None:
        """The rule for a tensor of the file, the block's number filled in; None if unknown."""
        layer, pattern = _split_layer(tensor_name)
        rule = self._by_name.get(pattern)
        return rule.of_layer(layer) if rule and layer is not None else rule

    def name_map(self, file: GGUFFile, config: Any) -> dict[str, str | tuple[str, ...]]:
        """GGUF tensor name to Hugging Face name(s) for every tensor the model takes from ``file``.

        Args:
            config: the model's transformers configuration, which says what shapes to expect.

        Raises:
            GGUFError: the file holds a tensor that the model does not know or knows in another
                shape, or lacks one that it needs.
        """
        names = {}
        for tensor in file.tensors.values():
            if not _IGNORED.fullmatch(tensor.name):
                names[tensor.name] = self._checked_rule(tensor, config).hf
        for rule in self._needed(config.num_hidden_layers):
            if rule.gguf in names and rule.unless in names:
                raise GGUFError(
                    f"the file holds the same weights twice, here and in {rule.unless}",
                    file=file.path,
                    tensor=rule.gguf,
                    hint=CONVERT_AGAIN,
                )
            if rule.gguf not in names and (rule.unless is None or rule.unless not in names):
                raise GGUFError(
                    "the model needs this tensor and the file lacks it",
                    file=file.path,
                    tensor=rule.gguf,
                    found=f"{len(file.tensors)} other tensors",
                    expected=f"shape {rule.expected_shape(config)}",
                    hint=CONVERT_AGAIN,
                )
        return names

    def _checked_rule(self, tensor: GGUFTensor, config: Any) -> Rename:
        rule = self.rename(tensor.name)
        layer, _ = _split_layer(tensor.name)
        layers = config.num_hidden_layers
        if rule is None or (layer is not None and int(layer) >= layers):
            raise GGUFError(
                "the model has no such tensor",
                file=tensor.file,
                tensor=tensor.name,
                found=f"{tensor.type.name} of shape {tuple(tensor.shape)}",
                expected=f"the tensors of a {self.name} model with {layers} blocks",
                hint=CONVERT_AGAIN,
            )
        expected = rule.expected_shape(config)
        # A row vector may be written with or without its leading dimension of one.
        if tensor.shape not in (expected, (1, *expected)):
            raise GGUFError(
                "the shape does not fit the model's configuration",
                file=tensor.file,
                tensor=tensor.name,
                found=tuple(tensor.shape),
                expected=f"{expected} ({rule.shape})",
                hint=CONVERT_AGAIN,
            )
        return rule

    def _needed(self, layers: int) -> Iterator[Rename]:
        for rule in self.tensors:
            if rule.optional:
                continue
            if "{layer}" in rule.gguf:
                yield from map(rule.of_layer, range(layers))
            else:
                yield rule

    @cached_property
    def _by_name(self) -> dict[str, Rename]:
        return {rule.gguf: rule for rule in self.tensors}


def _split_layer(tensor_name: str) -> tuple[str | None, str]:
    """``blk.7.attn_q.weight`` to ``("7", "blk.{layer}.attn_q.weight")``."""
    match = re.fullmatch(r"blk\.(0|[1-9]\d*)\.(.+)", tensor_name)
    return (match[1], f"blk.{{layer}}.{match[2]}") if match else (None, tensor_name)
