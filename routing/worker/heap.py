"""glibc's heap in a worker: what messages took goes back to the system when they have ended.

glibc gives back what is free at the heap's end, and blocks above a limit that rises to the largest
one that was ever freed, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD). So messages of some hundred
kilobytes come and go between small objects that live longer, and the heap grows round the holes:
after ten minutes a worker had one of 100 MB, of which 35 were in use, and it grew on. The holes are
given back now and then; a fixed limit would do, too, but it makes large blocks some twenty times as
slow, those of tasks in threads included. So in the process that holds the messages, by its timer,
and in pool processes after a run (`routing.worker.gc_tuning`).

Garbage in cycles is collected first: each object of it keeps a page, and it waits long where the
collector runs seldom. Pool processes grew by 15 % in five minutes in which tasks failed now and
then.
"""

from __future__ import annotations

import gc
from functools import cache
from typing import Any

#: Seconds from one time to the next; it takes some ten milliseconds for a heap of 100 MB, and 50 ms
#: where thousands of messages are held.
TRIM_SECONDS = 30.0


def keep_trimmed(timer: Any) -> None:
    """Give free memory back now and then, where glibc manages it.

    Arguments:
        timer: the worker's.
    """
    timer.call_repeatedly(TRIM_SECONDS, trim)


def trim() -> None:
    """Collect garbage, and give free memory back where glibc manages it."""
    gc.collect()
    if (malloc_trim := _malloc_trim()) is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Any:
    import ctypes  # producers import this module, too

    return getattr(ctypes.CDLL(None), "malloc_trim", None)
