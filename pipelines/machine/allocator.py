"""How the C library's allocator keeps memory between training steps. No torch."""

from __future__ import annotations

import ctypes
import os

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc refuses more
_NEVER = 2**31 - 1
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, in one arena, instead of giving it back to the system.

    A step of stage 1 frees activations of some megabytes and asks for as many again. By default glibc takes each of
    them from the system afresh, which clears the pages: a tenth to a fifth of the time (docs/results.md). The peak
    stays the same, since every step is alike.

    Returns:
        whether it was set: not without glibc, and not where the environment sets glibc's allocator.
    """
    if any(name in os.environ for name in _USERS_OWN):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or no Linux
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_ARENA_MAX, 1),
    )
    return all([set_option(ctypes.c_int(option), ctypes.c_int(value)) == 1 for option, value in settings])
