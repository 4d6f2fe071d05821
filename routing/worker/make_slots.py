"""Which slots a pool has: those of its semaphore, or counted ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from routing import upstream
from routing.worker.greenlets import let_go
from routing.worker.prefork import Pipes
from routing.worker.slots import CountedSlots, OnEnter, SemaphoreSlots, Slots
from routing.worker.stopping import Cut


def slots_of(
    consumer: Any,
    *,
    on_free: Callable[[], None],
    on_enter: OnEnter,
    soon: Callable[[Callable[[], None]], None],
) -> Slots:
    """Return the slots of a worker's pool; the other arguments are those of the two classes.

    Work that was handed over survives a reconnect, so the pool must not forget it.
    """
    pool = consumer.pool
    pool.flush = None
    if pool.uses_semaphore:
        finish = pool.flush = Pipes(upstream.PROCESS_POOL.of(pool)).finish
        Cut(consumer, finish)
        semaphore = consumer.controller.semaphore
        return SemaphoreSlots(pool, semaphore, on_free=on_free, on_enter=on_enter)
    let_go(pool)
    return CountedSlots(pool, on_free=on_free, on_enter=on_enter, soon=soon)


def growth_of(consumer: Any) -> int:
    """Return how many slots the pool would add if there were work for them (``--autoscale``)."""
    most = getattr(consumer.controller, "max_concurrency", 0) or 0
    return max(0, most - int(consumer.pool.num_processes))
