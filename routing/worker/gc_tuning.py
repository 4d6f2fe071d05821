"""Python's cyclic garbage collector in a worker: thousands of live messages are no garbage.

With its default thresholds it walks all prefetched messages again and again; that was measured as a
quarter of the consumer's time with batches of 500. It counts objects, however: a few heavy ones in
cycles would wait for very long, so it also runs when the process has grown.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import signals

from routing.worker.heap import TRIM_SECONDS, trim

#: Python's own, up to 3.13 and later, which an application that knows better has changed.
_DEFAULTS = {(700, 10, 10), (2000, 10, 10), (2000, 10, 0)}

#: Allocations before the young generation is walked: some thousand messages. Cyclic garbage of
#: ordinary tasks stays below a few megabytes until then.
_THRESHOLDS = (50_000, 20, 50)

#: Seconds between two looks at the process's size, and the growth that is worth a walk over
#: everything: some 50 ms.
LOOK_SECONDS = 0.5
GROWTH_BYTES = 32 * 1024**2


def relax_collector() -> None:
    """Leave what has been imported out of every walk, and walk less often.

    An application that has set thresholds of its own keeps them. Calling it again changes nothing.
    """
    if gc.get_threshold() not in _DEFAULTS:
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def relax_in_pool_processes() -> None:
    """Do the same in each pool process when it starts."""
    signals.worker_process_init.connect(_on_process_init, dispatch_uid="celeriac-collector")


class GrowthWatch:
    """Collects garbage when the process has grown since it last did; where Linux tells its size.

    And gives the holes in the heap back now and then.
    """

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._trimmed_at = time.monotonic()
        self._pages: int | None = None

    def look(self) -> None:
        """Collect if that is due; called after each run, at next to no cost."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if now - self._trimmed_at >= TRIM_SECONDS:
            self._trimmed_at = now
            trim()
        pages = _resident_pages()
        if self._pages is None or pages < self._pages:
            self._pages = pages
        elif (pages - self._pages) * resource.getpagesize() > GROWTH_BYTES:
            gc.collect()
            self._pages = _resident_pages()


GROWTH = GrowthWatch()


def _resident_pages() -> int:
    try:
        with Path("/proc/self/statm").open("rb") as statm:
            return int(statm.read().split()[1])
    except OSError:
        return 0


@contextmanager
def paused() -> Iterator[None]:
    """Collect nothing meanwhile: for work that is short and makes no cycles of its own."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _on_process_init(**_: object) -> None:
    relax_collector()
