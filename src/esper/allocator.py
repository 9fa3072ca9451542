"""How the C library gives memory back, where that costs time."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``."""

_LARGEST_KEPT = 2**25
"""Bytes; the most that glibc allows."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to the most that it has held at once.

    Tensors of some hundred kilobytes, which come and go with every training step of small networks, are given back to
    the system by glibc and asked for again, and every page is zeroed anew: thousands of page faults per decision, a
    fifth of the time. Only for processes of our own; it changes no result.

    Returns:
        Whether it was done: on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
