"""Memory in huge pages: a large tensor's first touch, and each later one, costs far fewer faults.

Linux gives them on request (``madvise(2)``, MADV_HUGEPAGE); where it does not, nothing changes.
"""

import ctypes
import mmap
from functools import cache

from torch import Tensor

WORTHWHILE = 1 << 22  # bytes: below, a few faults more do not matter


def ask_for_huge_pages(tensor: Tensor) -> Tensor:
    """Return ``tensor``, whose memory should not have been touched yet; small ones are left."""
    size = tensor.numel() * tensor.element_size()
    if tensor.is_cpu and size >= WORTHWHILE and (madvise := _madvise()) is not None:
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(first, last - first, mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _madvise() -> "ctypes._NamedFuncPointer | None":
    """Return the C library's function, or None where this system has no such pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
