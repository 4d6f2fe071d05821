"""Remote control of live workers: prefetch by queue, and what they hold.

``celery -A tasks control queue_prefetch ingest 500``, ``celery -A tasks inspect queue_credits``,
how long messages waited: ``celery -A tasks inspect queue_waits``, and what the calls of batch tasks
were like: ``celery -A tasks inspect batches``.
Importing this module makes the commands known, in workers and on the command line.
"""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command, inspect_command

from routing.topology.checks import batch_problems, batches_by_queue
from routing.transport import runtime
from routing.worker.figures import FIGURES
from routing.worker.startup import prefetch_lack
from routing.worker.waits import WAITS


def _runtime(state: Any) -> runtime.Runtime:
    return runtime.lookup(getattr(state.app.amqp_cls, "runtime_name", None))


@control_command(args=[("queue", str), ("count", int)], signature="<queue> <count>")
def queue_prefetch(state: Any, queue: str, count: int) -> dict[str, str]:
    """Set the most unfinished messages that a worker may hold from a queue, until it restarts."""
    here = _runtime(state)
    known = [*here.topology.queues, *state.app.amqp.queues.consume_from]
    if queue not in known:
        names = ", ".join(map(repr, dict.fromkeys(known)))
        return {"error": f"no queue {queue!r} here: this worker knows {names}"}
    sizes = batches_by_queue(state.app).get(queue, {})
    if problem := next(batch_problems(queue, count, sizes), None):
        return {"error": problem}
    try:
        here.prefetch.change(queue, int(count))
    except ValueError as error:
        return {"error": str(error)}
    lack = prefetch_lack(here.prefetch, queue)
    return {"ok": f"prefetch of queue {queue!r} is now {count}" + (f"; {lack}" if lack else "")}


@inspect_command()
def queue_credits(state: Any) -> dict[str, dict[str, int]]:
    """Show what each worker holds of each queue, may hold, and has gathered for batches."""
    snapshot = _runtime(state).snapshot()
    dispatcher = getattr(getattr(state, "consumer", None), "dispatcher", None)
    buffered = dispatcher.buffered() if dispatcher is not None else {}
    return {q: {**shown, "buffered": buffered.get(q, 0)} for q, shown in snapshot.items()}


@inspect_command()
def queue_waits(state: Any) -> dict[str, dict[str, Any]]:
    """Show how long messages had waited when each worker started them, since it began."""
    return WAITS.report()


@inspect_command()
def batches(state: Any) -> dict[str, dict[str, Any]]:
    """Show what the calls of each batch task were like, since each worker began."""
    return FIGURES.report()
