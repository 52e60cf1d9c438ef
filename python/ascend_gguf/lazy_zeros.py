"""Zeros on the host that take no memory until they are touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# Bytes from which on it is worth while.
_LARGE = 1 << 20


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros of 1 to 8 bytes on the host, whose pages the system provides when first touched."""
    # torch writes its zeros.  numpy asks the system for memory that is zero, in huge pages.
    return torch.from_numpy(np.zeros(shape, dtype=f"u{dtype.itemsize}")).view(dtype)


class LazyZeros(TorchFunctionMode):
    """A context in which large ``torch.zeros`` on the host are :func:`lazy_zeros`."""

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is torch.zeros and options.keys() <= {"size", "dtype", "device"}:
            device = torch.device(options.get("device") or torch.get_default_device())
            wanted = func(*args, **{**options, "device": "meta"})
            if device.type == "cpu" and wanted.nbytes >= _LARGE:
                return lazy_zeros(wanted.shape, wanted.dtype)
        return func(*args, **options)
