"""What fits a queue table: names of queues, and the workers that can work with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table asks here about itself
    from routing.topology.model import QueueConfig, Topology

#: kombu's own keys: a queue of this name would overwrite them.
_KOMBU_KEYS = ("unacked", "unacked_index", "unacked_mutex")
_OWN_SUFFIXES = (".dead", ".dropped")


def name_problem(name: str) -> str | None:
    """Return why a queue cannot have this name, None when it can."""
    if not name:
        return "a queue needs a name, got an empty one"
    if not name.isprintable() or name != name.strip():
        return "a name has no control characters and no spaces at its ends"
    if "," in name:
        return "a name has no comma, which separates the queues of `worker -Q`"
    if name.endswith(_OWN_SUFFIXES):
        return "names that end in '.dead' or '.dropped' are kept for what a queue gave up"
    if name.startswith(("celeriac:", "_kombu.")) or name in _KOMBU_KEYS:
        return "this name belongs to a key of the broker's own"
    return None


def worker_problems(
    table: Topology,
    concurrency: int,
    batches: Mapping[str, Mapping[str, int]],
    *,
    taken: set[str],
) -> list[str]:
    """Return why a worker that takes from these queues cannot work with the table."""
    problems = [*_reserve_problems(table, concurrency, taken)]
    for queue in table.queues:
        prefetch = table.queue(queue).prefetch
        if queue in taken and prefetch is not None:
            problems.extend(batch_problems(queue, prefetch, batches.get(queue, {})))
    return problems


def batch_problems(queue: str, prefetch: int, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield why a queue with this prefetch cannot serve these batch tasks (name to max_size)."""
    for task_name, max_size in sizes.items():
        if prefetch < max_size:
            yield (
                f"queue {queue!r}: prefetch must be at least max_size ({max_size}) of batch task "
                f"{task_name!r}, got {prefetch}"
            )


def prefetch_needed(queue: QueueConfig, concurrency: int, sizes: Mapping[str, int]) -> int:
    """Return the prefetch with which one batch can fill while every slot runs another.

    What runs is unfinished, so it counts too.

    Arguments:
        queue: its `limit` may leave it fewer slots than the worker has.
        concurrency: slots of the worker.
        sizes: the batch tasks that go to the queue, each with its max_size in messages.
    """
    slots = min(concurrency, queue.limit or concurrency)
    return (slots + 1) * max(sizes.values(), default=0)


def _reserve_problems(table: Topology, concurrency: int, taken: set[str]) -> Iterator[str]:
    reserves = {name: q.reserve for name, q in table.queues.items() if q.reserve and name in taken}
    if (total := sum(reserves.values())) > concurrency:
        shares = ", ".join(f"{name} {slots}" for name, slots in reserves.items())
        yield (
            f"reserve of all queues must be at most the worker's concurrency ({concurrency}), "
            f"got {total} ({shares})"
        )
