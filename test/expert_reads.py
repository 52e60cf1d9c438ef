"""Which bytes of a file's experts each rank reads: ``probe="expert_reads:expert_bytes"``.

The engine's process imports this before its ranks are forked.  What a rank reads of packed tensors
goes through :meth:`MappedFile.read_into`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ascend_gguf.reader.mapping import MappedFile

_read: Counter[tuple[str, int]] = Counter()
_original = MappedFile.read_into


def _read_into(self: MappedFile, buffer: memoryview, offset: int) -> None:
    _read[self.tensor_at(offset) or "", offset] += len(buffer)
    _original(self, buffer, offset)


MappedFile.read_into = _read_into


def expert_bytes(model_runner: Any) -> dict[int, int]:
    """Bytes that this rank read of each expert, all layers and projections together."""
    from ascend_gguf.reader import open_gguf

    found: Counter[int] = Counter()
    tensors = open_gguf(model_runner.model_config.model_path).tensors
    for (name, offset), nbytes in _read.items():
        if "_exps." in name:
            tensor = tensors[name]
            size = tensor.nbytes // tensor.shape[0]
            first, inside = divmod(offset - tensor.offset, size)
            assert inside + nbytes <= size, f"{name}: one read of several experts"
            found[first] += nbytes
    return dict(found)
