"""Python's cyclic garbage collector in a worker: thousands of live messages are no garbage.

With its default thresholds it walks all prefetched messages again and again; that was measured as a
quarter of the consumer's time with batches of 500.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from celery import signals

#: Python's own, up to 3.13 and later, which an application that knows better has changed.
_DEFAULTS = {(700, 10, 10), (2000, 10, 10), (2000, 10, 0)}

#: Allocations before the young generation is walked: some thousand messages. Cyclic garbage of
#: ordinary tasks stays below a few megabytes until then.
_THRESHOLDS = (50_000, 20, 50)


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
