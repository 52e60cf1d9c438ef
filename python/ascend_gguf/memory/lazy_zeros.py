"""Zeros on the host that take no memory until they are touched."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# Bytes from which on it is worth while.
_LARGE = 1 << 20
# Bytes of a line of the cache.
_ALIGNED = 64


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros of 1 to 8 bytes on the host, whose pages the system provides when first touched."""
    # torch writes its zeros.  numpy asks the system for memory that is zero, in huge pages.
    return torch.from_numpy(np.zeros(shape, dtype=f"u{dtype.itemsize}")).view(dtype)


class Neighbours:
    """Bytes for many tensors, side by side in large pages: a small one has no page of its own.

    What is read through, weight after weight, is read the faster the fewer pages it is in.

    Args:
        nbytes: how many are asked of the system at once; a tensor of a quarter of that has its own.
    """

    def __init__(self, nbytes: int = 64 << 20) -> None:
        self._nbytes = nbytes
        self._free = lazy_zeros((0,), torch.uint8)
        self._lock = threading.Lock()

    def zeros(self, shape: Sequence[int]) -> torch.Tensor:
        """Zeros, uint8, that take no memory until they are touched, at a multiple of 64."""
        nbytes = math.prod(shape)
        if nbytes >= self._nbytes // 4:
            return lazy_zeros(shape, torch.uint8)
        taken = -(-nbytes // _ALIGNED) * _ALIGNED
        with self._lock:
            if taken > len(self._free):
                free = lazy_zeros((self._nbytes,), torch.uint8)
                self._free = free[-free.data_ptr() % _ALIGNED :]
            found, self._free = self._free[:nbytes], self._free[taken:]
        return found.view(*shape)


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
