"""Which workers can work with a queue table, and whether it fits the tasks of an app."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routing.errors import TopologyError
from routing.topology.model import Topology
from routing.topology.queue import QueueConfig


def check_worker(
    table: Topology,
    concurrency: int,
    batches: Mapping[str, Mapping[str, int]],
    *,
    queues: Iterable[str] | None = None,
) -> None:
    """Refuse a worker that a table cannot work with.

    Arguments:
        table: the queue table.
        concurrency: slots of the worker.
        batches: queue to the batch tasks that go there, each with its max_size in messages.
        queues: the queues that the worker takes from; None means all of the table.

    Raises:
        TopologyError: the reserves do not fit into the slots, or a batch could never become full.
    """
    taken = set(table.queues if queues is None else queues)
    problems = [*_reserve_problems(table, concurrency, taken)]
    for queue in table.queues:
        prefetch = table.queue(queue).prefetch
        if queue in taken and prefetch is not None:
            problems.extend(batch_problems(queue, prefetch, batches.get(queue, {})))
    if problems:
        raise TopologyError("\n".join(problems))


def batch_problems(queue: str, prefetch: int, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield why a queue with this prefetch cannot serve these batch tasks (name to max_size)."""
    for task_name, max_size in sizes.items():
        if prefetch < max_size:
            yield (
                f"queue {queue!r}: prefetch must be at least max_size ({max_size}) of batch task "
                f"{task_name!r}, got {prefetch}"
            )


def prefetch_needed(queue: QueueConfig, concurrency: int, sizes: Mapping[str, int]) -> int:
    """Return the prefetch with which the next batch can be there when one in a slot ends.

    What runs is unfinished, so it counts too.

    Arguments:
        queue: its `limit` may leave it fewer slots than the worker has.
        concurrency: slots of the worker.
        sizes: the batch tasks that go to the queue, each with its max_size in messages.
    """
    slots = min(concurrency, queue.limit or concurrency)
    return (slots + 1) * max(sizes.values(), default=0)


def largest_batches(app: Any, prefetch_of: Callable[[str], int]) -> dict[str, int]:
    """Return the size of the largest batch of each queue that batch tasks go to.

    With a key, which only the worker can see, it is as many messages as it may hold, or none of the
    batches could be filled.
    """
    sizes = {}
    for queue, batches in batches_by_queue(app).items():
        is_keyed = any(_is_keyed(app.tasks[name]) for name in batches)
        sizes[queue] = prefetch_of(queue) if is_keyed else max(batches.values())
    return sizes


def only_batches(app: Any) -> dict[str, tuple[str, int]]:
    """Return the queues that one batch task without a key has for itself: its name and max_size.

    Celery's own tasks do not count: they come to the default queue, and seldom.
    """
    found = {
        queue: (name, size)
        for queue, batches in batches_by_queue(app).items()
        for name, size in batches.items()
        if len(batches) == 1 and not _is_keyed(app.tasks[name])
    }
    for name, task in app.tasks.items() if found else ():
        if not name.startswith("celery."):
            for queue in app.amqp.router.reachable_queues(task):
                if queue in found and found[queue][0] != name:
                    del found[queue]
    return found


def limited_batches(app: Any, limits: Iterable[str]) -> dict[str, int]:
    """Return the limits that are a batch task's own, with its max_size."""
    tasks = {name: app.tasks[name] for name in limits if name in app.tasks}
    return {
        name: task.max_size
        for name, task in tasks.items()
        if hasattr(task, "run_item") and not _is_keyed(task)
    }


def _is_keyed(task: Any) -> bool:
    return getattr(task, "key", None) is not None


def usable_slots(table: Topology, queue: str, concurrency: int, *, taken: Iterable[str]) -> int:
    """Return how many of a worker's slots a queue may have: by its limit, and others' reserves.

    Arguments:
        table: the queue table.
        queue: the queue.
        concurrency: slots of the worker.
        taken: the queues that the worker takes from.
    """
    kept = sum(table.queue(name).reserve for name in {*taken} - {queue})
    return min(max(1, concurrency - kept), table.queue(queue).limit or concurrency)


def _reserve_problems(table: Topology, concurrency: int, taken: set[str]) -> Iterator[str]:
    reserves = {name: q.reserve for name, q in table.queues.items() if q.reserve and name in taken}
    if (total := sum(reserves.values())) > concurrency:
        shares = ", ".join(f"{name} {slots}" for name, slots in reserves.items())
        yield (
            f"reserve of all queues must be at most the worker's concurrency ({concurrency}), "
            f"got {total} ({shares})"
        )


def batches_by_queue(app: Any) -> dict[str, dict[str, int]]:
    """Return the batch tasks that go to each queue, as the router says, with their max_size."""
    found: dict[str, dict[str, int]] = {}
    for name, task in app.tasks.items():
        if hasattr(task, "run_item") and isinstance(getattr(task, "max_size", None), int):
            for queue in app.amqp.router.reachable_queues(task):
                found.setdefault(queue, {})[name] = task.max_size
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownKey:
    """A limit's key that no call of a task has, so that all of its calls share one gate."""

    limit: str
    key: str | int
    task: str
    parameters: Sequence[str]


def unknown_keys(app: Any, topology: Topology) -> Iterator[UnknownKey]:
    """Yield the keys of limits that no call of a task of the app's own can have."""
    for task_name, task in app.tasks.items():
        if task_name.startswith("celery.") or (found := topology.limit_for(task_name)) is None:
            continue
        name, limit = found
        if limit.key is not None and (names := _without(limit.key, task.run)) is not None:
            yield UnknownKey(limit=name, key=limit.key, task=task_name, parameters=names)


def _without(key: str | int, run: Any) -> Sequence[str] | None:
    """Return the parameters of a function none of which a key can mean, else None.

    >>> _without("hots", lambda host, path: ...), _without(2, lambda host, path: ...)
    (('host', 'path'), ('host', 'path'))
    >>> _without("hots", lambda host, **more: ...), _without(1, lambda host, path: ...)
    (None, None)
    """
    try:
        kinds = {one.name: one.kind for one in inspect.signature(run).parameters.values()}
    except (TypeError, ValueError):
        return None
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = tuple(name for name, kind in kinds.items() if kind not in many)
    if isinstance(key, str):
        takes_it = key in names or inspect.Parameter.VAR_KEYWORD in kinds.values()
    else:
        by_name = inspect.Parameter.KEYWORD_ONLY
        count = sum(kinds[name] != by_name for name in names)
        takes_it = key < count or inspect.Parameter.VAR_POSITIONAL in kinds.values()
    return None if takes_it else names
