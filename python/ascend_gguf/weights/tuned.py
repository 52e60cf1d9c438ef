"""Which layout was the quickest for a weight: what ``ascend-gguf tune`` found on a device.

One JSON file holds it for all devices and models.  A weight is known by what multiplies with it,
its shape, the types it is made of, and the dtype it computes in.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ascend_gguf.errors import GGUFError
from ascend_gguf.weights.layout import Layout, Weight

#: The file, where it is not in the user's cache.
VARIABLE = "ASCEND_GGUF_TUNED"

_VERSION = 1
_HINT = "It is ignored. Run `ascend-gguf tune` again, or delete it."


@dataclass(frozen=True)
class Tuned:
    """What was found for a weight.

    Attributes:
        layout: the name of the chosen one.
        is_wider: whether it takes more bytes than the one without tuning.
        seconds: of each layout that was timed, for each number of tokens.
    """

    layout: str
    is_wider: bool
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preferences:
    """What loading obeys.

    Attributes:
        chosen: for each weight, by its :func:`key`.
        takes_wider: whether there is room for layouts that take more bytes.
        obeyed: keys of weights that got another layout than they have without tuning.
    """

    chosen: Mapping[str, Tuned] = field(default_factory=dict)
    takes_wider: bool = False
    obeyed: list[str] = field(default_factory=list)

    def order(
        self,
        role: str,
        others: Sequence[type[Layout]],
        weight: Weight,
        layouts: Sequence[type[Layout]],
    ) -> Sequence[type[Layout]]:
        """The layouts that a weight may have, the chosen one first; ``others`` only if chosen."""
        found = self.chosen.get(key(role, weight))
        if found is None or found.is_wider and not self.takes_wider:
            return layouts
        for layout in (*layouts, *others):
            if layout.name == found.layout and layout.unsupported_reason(weight) is None:
                rest = [other for other in layouts if other is not layout]
                if layout is not next(x for x in layouts if x.unsupported_reason(weight) is None):
                    self.obeyed.append(key(role, weight))
                return layout, *rest
        return layouts


def key(role: str, weight: Weight) -> str:
    """What a weight is known by, such as ``linear 6144 x 4096 Q4_K bfloat16``."""
    shape = " x ".join(map(str, weight.shape))
    types = "+".join(sorted(kind.name for kind in weight.kinds))
    return f"{role} {shape} {types} {str(weight.dtype).removeprefix('torch.')}"


def has_room(weights: int, dtype: torch.dtype, ranks: int, memory: int) -> bool:
    """Whether wider layouts are no danger: all weights would fit half of the memory as dense ones.

    Args:
        weights: of the model.
        ranks: that share them.
        memory: of the device, in bytes.
    """
    return weights * dtype.itemsize / ranks <= memory / 2


def cache_file() -> Path:
    """The file: what ``ASCEND_GGUF_TUNED`` says, or one in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(home, "ascend-gguf", "tuned.json"))


def read() -> dict[str, dict[str, Tuned]]:
    """For each device, each weight's; nothing where there is no file.

    Raises:
        GGUFError: the file cannot be read, or holds something else.
    """
    path = cache_file()
    try:
        found: Any = json.loads(path.read_bytes())
        if found["version"] != _VERSION:
            raise GGUFError(
                "of another version", file=path, found=found["version"], expected=_VERSION
            )
        devices = {
            device: {name: Tuned(**entry) for name, entry in entries.items()}
            for device, entries in found["devices"].items()
        }
        if not all(
            isinstance(one.layout, str) and isinstance(one.is_wider, bool)
            for entries in devices.values()
            for one in entries.values()
        ):
            raise ValueError
    except FileNotFoundError:
        return {}
    except GGUFError as error:
        error.hint = _HINT
        raise
    except OSError as error:
        raise GGUFError(f"unreadable: {error.strerror}", file=path, hint=_HINT) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise GGUFError("not what `ascend-gguf tune` writes", file=path, hint=_HINT) from None
    return devices


def write(device: str, entries: Mapping[str, Tuned]) -> Path:
    """Add to the file what was found on a device, in one step; returns its path.

    Raises:
        GGUFError: it cannot be written.
    """
    path = cache_file()
    try:
        known = read()
    except GGUFError:  # said before anything was timed
        known = {}
    devices = known | {device: {**known.get(device, {}), **entries}}
    text = json.dumps({"version": _VERSION, "devices": devices}, indent=1, default=asdict)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            try:
                file.write(text)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise GGUFError(f"cannot be written: {error.strerror}", file=path) from None
    return path
