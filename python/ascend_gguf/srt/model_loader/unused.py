"""Weights that a class of the engine takes no notice of: it would compute something else."""

from __future__ import annotations

from bisect import bisect_left

import torch
from sglang.srt.runtime_context import get_parallel
from torch.multiprocessing.reductions import StorageWeakRef

from ascend_gguf.errors import GGUFError
from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.load_stream import Stream, place_of

#: What a class may leave out: a matrix that it shares with the embedding.
_SHARED = ("lm_head.weight",)


class Offered:
    """The weights that were given to a model's ``load_weights``.

    The engine's classes skip a name that they do not know, without a word.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[StorageWeakRef, int, int]] = {}

    def add(self, name: str, data: torch.Tensor) -> None:
        """A weight of the model, by the model's name."""
        if isinstance(data, BlockTensor) and data.numel():
            # The reference keeps no bytes, but keeps later storages from having the same identity:
            # the memory of a weight that was skipped may be the next one's.
            reference = StorageWeakRef(data.blocks.untyped_storage())
            _, start = place_of(data)
            self._places[name] = reference, start, start + data.blocks.nbytes

    def check(self, stream: Stream, path: str) -> None:
        """Compare with what was used while ``stream`` was current.

        Raises:
            GGUFError: no operator was given a weight.  Only the first rank of one stage looks.
        """
        parallel = get_parallel()
        # A stage has its layers alone, and a rank may have no heads.
        if parallel.pp_size > 1 or parallel.tp_rank > 0:
            return
        used = sorted(stream.used)
        unused = []
        for name, (storage, start, stop) in self._places.items():
            is_elsewhere = parallel.moe_ep_size > 1 and ".experts." in name
            first = bisect_left(used, (storage.cdata, start))
            is_used = first < len(used) and used[first] < (storage.cdata, stop)
            if not (is_used or is_elsewhere or name in _SHARED):
                unused.append(name)
        if unused:
            shown = ", ".join(unused[:3]) + f" and {len(unused) - 3} more" * (len(unused) > 3)
            raise GGUFError(
                f"SGLang's class of this model has no place for weights: {shown}",
                file=path,
                hint="Answers would be wrong. Serve this file with another engine.",
            )
