"""glibc's heap in a worker: what large messages took goes back to the system when they have ended.

glibc takes what is larger than 128 KB from the system, and gives it back when it is freed. But each
such block that is freed raises that limit to its size, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD).
From then on messages of some hundred kilobytes come and go between small objects that live longer,
and the heap grows round the holes: after ten minutes a worker had one of 100 MB, of which 35 were
in use, and it grew on. With a fixed limit it does not.

In the process that holds the messages only: a pool process has those of one call, and for what a
task allocates the limit that moves is the faster one.
"""

from __future__ import annotations

import ctypes
import os

#: glibc's numbers of these parameters, malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

#: A block of at least so many bytes is taken from the system, and goes back to it: glibc's own
#: limit at the start.
LARGE_BYTES = 128 * 1024

#: So much stays free at the heap's end, for what comes next: each change of its end is a call.
SPARE_BYTES = 1024 * 1024

#: How users set the same, before a process starts.
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def return_large_blocks() -> None:
    """Fix the limit from which on blocks go back to the system; only glibc has one.

    A process that was started with limits of its own keeps them. Calling it again changes nothing.
    """
    if any(name in os.environ for name in _VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, SPARE_BYTES)
