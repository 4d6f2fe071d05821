"""The ledger as Python calls: read all queues at one moment, and book what cannot be explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from routing.redis.commands import Verbs
from routing.redis.ledger import Ledger, QueueLedger
from routing.redis.scripts import call


def read(
    client: redis.Redis, verbs: Verbs, queues: Sequence[str] | None = None, *, recount: bool = False
) -> Ledger:
    """Return the ledgers of queues at one moment; nothing is changed.

    Arguments:
        client: a client that adds no key prefix.
        queues: names of queues of the table; None for all of it.
        recount: also count what is unacknowledged in the records, which takes the server some
            microseconds for each.
    """
    names = list(verbs.topology.queues if queues is None else queues)
    names_of, lists = verbs.keys, len(verbs.keys.steps)
    keys = [names_of.records()[0], names_of.records()[3]]
    for name in names:
        keys += [names_of.ledger(name), names_of.delayed(name)]
        keys += [names_of.dead(name), names_of.dropped(name), *names_of.ready_lists(name)]
    server_ms, *rows = call(client, "ledger", keys, [lists, int(recount)])
    return Ledger(
        server_ms=int(server_ms),
        queues=tuple(
            _queue(name, row, now_ms=int(server_ms), recount=recount)
            for name, row in zip(names, rows, strict=True)
        ),
    )


def _queue(name: str, row: Sequence[Any], *, now_ms: int, recount: bool) -> QueueLedger:
    waiting, delayed, dead_letters, unfinalised, stamp, recorded, *flat = row
    counters = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
    return QueueLedger(
        queue=name,
        waiting=int(waiting),
        delayed=int(delayed),
        unacked=counters.pop("unacked", 0),
        waiting_bytes=max(0, counters.pop("bytes", 0)),
        dead_letters=int(dead_letters),
        unfinalised=int(unfinalised),
        oldest_seconds=max(0, now_ms - int(stamp)) / 1000 if stamp else None,
        recorded=int(recorded) if recount else None,
        counters=counters,
    )


def rebase(client: redis.Redis, verbs: Verbs, ledger: QueueLedger) -> bool:
    """Book a queue's difference as unaccounted, and correct what it says is unacknowledged.

    Neither changes while messages move, so both may have been read some time ago.

    Returns:
        False when somebody else has booked since the ledger was read.
    """
    unaccounted = ledger.misheld - ledger.difference
    if not unaccounted and not ledger.misheld:
        return True
    keys = [verbs.keys.ledger(ledger.queue)]
    return bool(call(client, "rebase", keys, [unaccounted, ledger.misheld, ledger["unaccounted"]]))
