"""Keep freed memory in the process, which saves a training step on the CPU a tenth of its time and more."""

import ctypes
import sys

# The numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Older versions of glibc take the smaller one only.
_KEPT_BLOCKS = 2**30, 2**25
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory for the next allocation, for the rest of the process.

    By default it returns large blocks to the system at once, which clears the same pages for every training step. The
    peak of memory stays about the same. With another malloc than glibc's, nothing happens.
    """
    if sys.platform == "linux" and hasattr(malloc := ctypes.CDLL(None), "mallopt"):
        malloc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        any(malloc.mallopt(_M_MMAP_THRESHOLD, size) for size in _KEPT_BLOCKS)
