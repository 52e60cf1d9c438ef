"""From the path a user gives to the files of one model.

llama-gguf-split names the parts of a split model ``NAME-00001-of-00004.gguf`` and so on
(llama.cpp, ``llama_split_path``). Siblings are sought beside the path as given, not beside what
it links to: in a Hugging Face cache the links carry the names and the targets are hashes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ascend_gguf.errors import GGUFError

_SHARD_NAME = re.compile(r"(?P<model>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class ShardName(NamedTuple):
    """A split file's name taken apart; ``number`` counts from 1."""

    model: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.model}-{self.number:05d}-of-{self.count:05d}.gguf"


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of a split file's name; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return match and ShardName(match["model"], int(match["number"]), int(match["count"]))


def find_model(path: Path) -> Path:
    """The file to open for ``path``: itself, or the one model in a directory (its first shard).

    Raises:
        GGUFError: there is nothing at ``path``, or the directory holds no model or several.
    """
    if not path.is_dir():
        return path
    # One entry a model: the shards of a split model share a key.
    models: dict[tuple[str, int], Path] = {}
    for file in sorted(filter(Path.is_file, path.glob("*.gguf"))):
        shard = parse_shard_name(file.name)
        models.setdefault((shard.model, shard.count) if shard else (file.name, 0), file)
    if len(models) != 1:
        names = ", ".join(file.name for file in models.values())
        raise GGUFError(
            "the directory does not hold exactly one GGUF model",
            file=path,
            found=names or "no .gguf file",
            hint="Pass the path of one of these files."
            if names
            else "Pass the path of a .gguf file",
        )
    return next(iter(models.values()))


def find_shards(path: Path) -> tuple[Path, ...]:
    """All files of the model that ``path`` belongs to, in order; just ``path`` if not split.

    Raises:
        GGUFError: names the shards that are missing.
    """
    name = parse_shard_name(path.name)
    if name is None:
        return (path,)
    if not 1 <= name.number <= name.count:
        raise GGUFError(
            "the file's name gives it an impossible place in a split model",
            file=path,
            found=f"shard {name.number} of {name.count}",
            hint="Restore the name the file was published with.",
        )
    shards = tuple(
        path.with_name(str(name._replace(number=number))) for number in range(1, name.count + 1)
    )
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise GGUFError(
            f"the model is split into {name.count} files and not all are there",
            file=path,
            found=f"no {', '.join(missing[:8])}" + (" and others" if len(missing) > 8 else ""),
            hint=f"Download all {name.count} files into {path.parent}.",
        )
    return shards
