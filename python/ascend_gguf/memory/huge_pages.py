"""Memory in large pages.

The first touch of a page of 4 KB costs more than decoding the numbers that go there; the system
gives pages of 2 MB where it is asked to (``transparent_hugepage`` is ``madvise``, as a rule).
Where pages are 64 KB, as on some ARM systems, huge ones are 512 MB.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch

_libc = ctypes.CDLL(None)
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_HUGE = int(_SIZE_FILE.read_text()) if _SIZE_FILE.exists() else 2 << 20


def use_huge_pages(tensor: torch.Tensor) -> None:
    """Ask for huge pages under a contiguous tensor on the host, if it is large; call before use.

    A system that has none is as good as one that does not know the question.
    """
    if tensor.device.type != "cpu" or tensor.nbytes < 2 * _HUGE or _MADV_HUGEPAGE is None:
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)
