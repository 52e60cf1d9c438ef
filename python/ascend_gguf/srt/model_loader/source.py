"""What a model in memory was loaded from, and whether another file's weights may take its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.layers.quantization.gguf import GGUFConfig

from ascend_gguf.config import load_config
from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFTensor, open_gguf
from ascend_gguf.reader.mapping import file_identity
from ascend_gguf.srt.model_loader.weight_utils import gguf_weight_names
from ascend_gguf.srt.utils.hf_transformers.config import reads_config_from
from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE, in_parallel
from ascend_gguf.weights.block_tensor import BlockTensor

if TYPE_CHECKING:
    from ascend_gguf.architectures import Target

# What the configuration says that does not change what the model computes.
_NOT_COMPARED = frozenset(("dtype", "bos_token_id", "eos_token_id", "pad_token_id"))
_RESTART = "Start a server on this file instead."


@dataclass(frozen=True)
class Source:
    """A file whose weights a model has or may get.

    Attributes:
        path: the (first) file.
        identities: what tells each of its files from a later one of the same name.
        config: the model's configuration, as the file has it; empty where the engine reads it.
        names: the model's names of all weights.
        tokenizer: the metadata of the tokenizer.
        nbytes: of all tensors.
        options: of ``--model-loader-extra-config``.
        quant_config: what all the layers' methods share.
    """

    path: str
    identities: tuple[Any, ...]
    config: Mapping[str, Any]
    names: frozenset[str]
    tokenizer: Mapping[str, int]
    nbytes: int
    options: Mapping[str, Any]
    quant_config: GGUFConfig

    @classmethod
    def of(
        cls,
        path: str,
        name_map: Mapping[str, Target],
        options: Mapping[str, Any],
        quant_config: GGUFConfig,
    ) -> Source:
        """Raises GGUFError: the file is damaged, or gone."""
        file = open_gguf(path)
        return cls(
            path,
            tuple(map(file_identity, file.files)),
            load_config(path).to_dict() if reads_config_from(path) else {},
            gguf_weight_names(path, name_map),
            {k: _digest(v) for k, v in file.metadata.items() if k.startswith("tokenizer.")},
            sum(tensor.nbytes for tensor in file.tensors.values()),
            options,
            quant_config,
        )

    def is_unchanged(self) -> bool:
        """Whether the files are still there, as they were."""
        try:
            return tuple(map(file_identity, open_gguf(self.path).files)) == self.identities
        except GGUFError:
            return False

    def check_replacement(self, new: Source) -> None:
        """Raises GGUFError: the weights of ``new`` are not for the model that has these."""
        # What is one number says more than what follows from it.
        keys = self.config.keys() | new.config.keys()
        for key in sorted(keys, key=lambda k: (isinstance(self.config.get(k), list | dict), k)):
            old_value, new_value = self.config.get(key), new.config.get(key)
            if key not in _NOT_COMPARED and old_value != new_value:
                raise GGUFError(
                    f"the file has another model than the one that is served: {key} differs",
                    file=new.path,
                    found=f"{new_value!r:.80}",
                    expected=f"{old_value!r:.80}",
                    hint=_RESTART,
                )
        for name in sorted(self.names ^ new.names):
            lacks = "lacks" if name in self.names else "has, and the model lacks,"
            raise GGUFError(f"the file {lacks} {name}", file=new.path, hint=_RESTART)
        tokens = "tokenizer.ggml.tokens"
        if self.tokenizer.get(tokens) != new.tokenizer.get(tokens):
            raise GGUFError(
                "the file has another vocabulary than the model that is served",
                file=new.path,
                key=tokens,
                hint=_RESTART,
            )

    def other_settings(self, new: Source) -> list[str]:
        """The keys in which the tokenizers differ."""
        keys = sorted(self.tokenizer.keys() | new.tokenizer.keys())
        return [key for key in keys if self.tokenizer.get(key) != new.tokenizer.get(key)]


def check_finite(path: str, part: int = 0, parts: int = 1) -> None:
    """Decode every weight of the file at ``path`` once.

    Args:
        part, parts: look at every ``parts``-th tensor, from tensor ``part`` on.

    Raises:
        GGUFError: a weight is NaN or infinite, or the file cannot be read.
    """
    for tensor in list(open_gguf(path).tensors.values())[part::parts]:
        if tensor.type.decoder is not None and tensor.nbytes:
            _check_tensor(tensor)


def _digest(value: Any) -> int:
    """Stands for a value of the metadata: a vocabulary is large."""
    if isinstance(value, np.ndarray):
        value = value.tobytes()
    return hash(tuple(value) if isinstance(value, list) else value)


def _check_tensor(tensor: GGUFTensor) -> None:
    blocks = tensor.blocks
    weights = BlockTensor(blocks.view(-1, blocks.shape[-1]), int(tensor.type.ggml_type))
    rows, cols = weights.shape
    step = max(1, WEIGHTS_PER_PIECE // cols)

    def check(first: int) -> None:
        if not weights[first : first + step].dequantize().isfinite().all():
            raise tensor.error("the tensor holds NaN or infinite values", hint=DOWNLOAD_AGAIN)

    in_parallel(lambda first=first: check(first) for first in range(0, rows, step))
