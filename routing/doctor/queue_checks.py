"""What is wrong with queues: nobody consumes them, they are full, or somebody has set them so."""

from __future__ import annotations

from collections.abc import Iterator

from routing.doctor.finding import Judgement, Level, count_of
from routing.doctor.snapshot import Snapshot
from routing.topology.fill import fills_of
from routing.topology.live import LiveTable


def queues(snapshot: Snapshot) -> Iterator[Judgement]:
    """Look for queues that nobody consumes."""
    consumed = {queue for worker in snapshot.workers for queue in worker.queues}
    # A worker that is busy and does not answer may consume any of them, if there is one.
    is_sure = not snapshot.silent
    missing = [queue for queue in snapshot.table.queues if queue not in consumed]
    for queue in missing:
        advice = f"start a worker with -Q {queue}, or without -Q"
        ledger = snapshot.ledger[queue]
        if ledger.is_neglected or ledger.waiting:
            # A worker that has no time to answer has told the broker that it lives, unless it was
            # killed just now.
            is_alone = ledger.is_neglected or not snapshot.has_engine
            is_known = is_alone or (is_sure and not ledger.consumers)
            who = "live worker" if ledger.is_neglected else "worker that answers"
            messages = count_of(ledger.waiting + ledger.due, "message")
            level: Level = "error" if is_known else "warn"
            yield level, f"{messages} in queue {queue!r}, which no {who} consumes", advice
        elif snapshot.workers and is_sure and not ledger.consumers:
            yield "warn", f"no worker that answers consumes queue {queue!r}", advice
    for queue, waiting in snapshot.stranded.items():
        what = f"{count_of(waiting, 'message')} in queue {queue!r}, which is not in the table"
        yield "error", what, f"add [queues.{queue}] to the table, at least until it is empty"
    for queue, late in snapshot.overdue.items():
        what = f"{count_of(late, 'delayed message')} of queue {queue!r} should have started"
        yield "error", what, "only workers of the engine release them: start one for the queue"
    if not missing and not snapshot.stranded and not snapshot.overdue:
        yield "ok", f"all of {count_of(len(snapshot.table.queues), 'queue')} are consumed", ""


def bounds(snapshot: Snapshot) -> Iterator[Judgement]:
    """Look for queues that take nothing more, as they are full."""
    found = False
    for row in snapshot.ledger.queues:
        queue = snapshot.table.queue(row.queue)
        fills = fills_of(
            queue, waiting=row.waiting, waiting_bytes=row.waiting_bytes, delayed=row.delayed
        )
        for fill in fills:
            if not fill.is_full:
                continue
            found = True
            what = f"queue {row.queue!r} is full: {fill.count:,} of {fill.limit:,} {fill.unit}"
            if row["refused"]:
                what += f"; {count_of(row['refused'], 'message')} refused so far"
            yield "warn", what, "add workers, send less, or raise its bound in the queue table"
    if not found:
        yield "ok", "every queue has room", ""


def gates(snapshot: Snapshot) -> Iterator[Judgement]:
    """Say which queues have work that may not start now, and why."""
    found, table = False, LiveTable(snapshot.table)
    table.apply(0, snapshot.settings)
    for row in snapshot.ledger.queues:
        reasons = list(row.reasons(table.queue(row.queue)))
        if not reasons or not row.waiting + row.blocked:
            continue
        found = True
        what = f"{count_of(row.waiting + row.blocked, 'message')} of queue {row.queue!r} may not "
        yield "ok", f"{what}start now: {', '.join(reasons)}", ""
    if not found:
        yield "ok", "nothing waits for a limit", ""


def settings(snapshot: Snapshot) -> Iterator[Judgement]:
    """Look for what was set at run time, and may have been forgotten."""
    for queue, fields in sorted(snapshot.settings.items()):
        advice = f"to end that: celery -A <app> queues reset {queue}"
        for name, one in fields.items():
            stops = name in ("paused", "drain") and one.value is True
            what = f"queue {queue!r}: {name} was set to {_shown(one.value)} by {one.by}"
            yield "warn" if stops else "ok", what, advice
    if not snapshot.settings:
        yield "ok", "the queue table holds for every queue", ""


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
