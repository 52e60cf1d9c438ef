"""From the path a user gives to the files of one model.

llama-gguf-split names the parts of a split model ``NAME-00001-of-00004.gguf`` and so on
(llama.cpp, ``llama_split_path``). Siblings are sought beside the path as given, not beside what
it links to: in a Hugging Face cache the links carry the names and the targets are hashes.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import NamedTuple

from ascend_gguf.errors import GGUFError

_SHARD_NAME = re.compile(
    r"(?P<model>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)",
    re.DOTALL | re.IGNORECASE,
)
#: GGUF files that are a part of a model, or made from one, and no model.
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)


class ShardName(NamedTuple):
    """A split file's name taken apart; ``number`` counts from 1."""

    model: str
    number: int
    count: int  # type: ignore[assignment]  # hides the method of tuples, which nobody calls
    suffix: str = ".gguf"

    def __str__(self) -> str:
        return f"{self.model}-{self.number:05d}-of-{self.count:05d}{self.suffix}"


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of a split file's name; None for any other name."""
    match = _SHARD_NAME.fullmatch(name)
    return match and ShardName(
        match["model"], int(match["number"]), int(match["count"]), match["suffix"]
    )


def is_gguf_name(name: str) -> bool:
    """True for a file name that ends in ``.gguf``, in capitals or not."""
    return name.lower().endswith(".gguf")


def is_model_name(name: str) -> bool:
    """True for the name of a GGUF file that is a model: no vision encoder, no importance matrix."""
    return is_gguf_name(name) and not _NO_MODEL.search(PurePath(name).name)


def find_model(path: Path) -> Path:
    """The file to open for ``path``: itself, or the one model in a directory (its first shard).

    A directory without a model of its own may hold one directory a quantization, as repositories
    on the hub do.

    Raises:
        GGUFError: there is nothing at ``path``, or the directory holds no model or several.
    """
    if not path.is_dir():
        return path
    models = _models_in(path)
    if not models:
        models = [file for folder in _folders_in(path) for file in _models_in(folder)]
    if len(models) != 1:
        names = ", ".join(str(file.relative_to(path)) for file in models)
        raise GGUFError(
            "the directory does not hold exactly one GGUF model",
            file=path,
            found=names or "no .gguf file",
            hint="Pass the path of one of these files."
            if names
            else "Pass the path of a .gguf file",
        )
    return models[0]


def _models_in(folder: Path) -> list[Path]:
    """The models that lie in a directory: of a split one, its first file."""
    models: dict[ShardName | str, Path] = {}
    for file in sorted(folder.iterdir()):
        if is_model_name(file.name) and file.is_file():
            shard = parse_shard_name(file.name)
            models.setdefault(shard._replace(number=0) if shard else file.name, file)
    return list(models.values())


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[0] != "."]


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
            f"the model is split into {name.count} files and some are missing",
            file=path,
            found=f"no {', '.join(missing[:8])}" + (" and others" if len(missing) > 8 else ""),
            hint=f"Download all {name.count} files into {path.parent}.",
        )
    return shards
