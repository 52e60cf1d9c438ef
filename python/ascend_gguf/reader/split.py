"""Do the files of a split model belong together?

llama-gguf-split writes three keys into every shard, and the model's own metadata into the first
only: ``split.no`` (from 0), ``split.count``, and ``split.tensors.count`` over all shards.
"""

from __future__ import annotations

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader.shard import Shard

_FROM_ONE_PLACE = "Download all the model's files again, from one place."


def check_split(shards: tuple[Shard, ...]) -> None:
    """Check the shards found by their names against what they say of themselves.

    Raises:
        GGUFError: a shard is of another model or in another's place, a tensor occurs twice or is
            missing, or a lone file turns out to be a shard under a changed name.
    """
    if len(shards) == 1:
        _check_whole(shards[0])
        return
    for number, shard in enumerate(shards):
        _check_key(shard, "split.count", len(shards))
        _check_key(shard, "split.no", number)
    tensors = sum(len(shard.tensors) for shard in shards)
    for shard in shards:
        _check_key(shard, "split.tensors.count", tensors)
    _check_tensors_once(shards)


def _check_whole(shard: Shard) -> None:
    count = shard.metadata.get("split.count", 0)
    if type(count) is not int or count > 1:  # llama-gguf-split --merge leaves a 0
        raise GGUFError(
            "the file is one of a split model's, but its name does not say which",
            file=shard.path,
            key="split.count",
            found=repr(count),
            expected="a name that ends in -NNNNN-of-NNNNN.gguf",
            hint="Restore the names the files were published with.",
        )


def _check_key(shard: Shard, key: str, expected: int) -> None:
    found = shard.metadata.get(key, "no such key")
    if type(found) is not int or found != expected:
        raise GGUFError(
            "the file does not belong where its name puts it in the split model",
            file=shard.path,
            key=key,
            found=found,
            expected=expected,
            hint=_FROM_ONE_PLACE,
        )


def _check_tensors_once(shards: tuple[Shard, ...]) -> None:
    holders: dict[str, Shard] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in holders:
                raise GGUFError(
                    "the tensor occurs twice in the split model",
                    file=shard.path,
                    tensor=name,
                    found=f"another in {holders[name].path.name}",
                    hint=_FROM_ONE_PLACE,
                )
            holders[name] = shard
