"""What became of every message: the counters of each queue, and whether they add up.

The counters change only inside the scripts that move messages, so at any moment, after any crash::

    accepted + replayed + unaccounted = waiting + blocked + delayed + unacked + the endings
                                        + dead + dropped + purged

What is missing on the right side is a queue's difference. It is 0 for a queue that only producers
and workers of the engine use. `read` asks for all queues at one moment, `rebase` books what cannot
be explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from routing.redis.commands import Commands
from routing.redis.scripts import run_script
from routing.topology.limits import reasons
from routing.topology.queue import LiveQueue

#: Lists of blocked messages that are counted in one call, of all queues: some milliseconds of the
#: server. Each gate has one for each priority.
PARKED_AT_MOST = 20_000

#: How messages come to a queue. `unaccounted` is what a rebase has booked, and may be negative.
ARRIVALS = ("accepted", "replayed", "unaccounted")

#: How messages end that a worker has taken: `started` is one that was acknowledged early.
ENDINGS = ("done", "failed", "retried", "revoked", "expired", "rejected", "ignored", "started")

#: How messages leave without such an ending.
DEPARTURES = ("dead", "dropped", "purged")

#: What is counted besides: refusals never entered, and the others are moves or losses of what has
#: been counted already.
EVENTS = ("refused", "overshoot", "given_back", "reclaimed", "dead_trimmed", "results_lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLedger:
    """The ledger of one queue, and where its messages are.

    Attributes:
        delayed: messages that wait for their time.
        unacked: messages that workers hold, by the ledger.
        dead_letters: dead letters that are kept now; the counter `dead` also has those that left.
        unfinalised: dropped messages whose results do not say so yet.
        oldest_seconds: age of the oldest waiting message, None when none has a stamp.
        recorded: messages that workers hold, by the records; None when they were not counted.
        consumers: live workers that consume the queue; None when nobody has looked.
        due: delayed messages whose time has come: a consumer lets them join the queue.
        blocked: messages that wait for the gate of their task or key.
        slots: slots of the queue's own gate that are held.
        next_start_ms: milliseconds until its rate lets the next work start.
        parked: what is blocked, counted again; None when it was not counted, or is blocked by more
            gates than one call looks at.
    """

    queue: str
    waiting: int = 0
    delayed: int = 0
    unacked: int = 0
    dead_letters: int = 0
    unfinalised: int = 0
    waiting_bytes: int = 0
    oldest_seconds: float | None = None
    recorded: int | None = None
    consumers: int | None = None
    due: int = 0
    blocked: int = 0
    slots: int = 0
    next_start_ms: int = 0
    parked: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, counter: str) -> int:
        return self.counters.get(counter, 0)

    @property
    def arrived(self) -> int:
        """Messages that came to the queue."""
        return sum(self[name] for name in ARRIVALS)

    @property
    def gone(self) -> int:
        """Messages that have ended, or left."""
        return sum(self[name] for name in ENDINGS + DEPARTURES)

    @property
    def difference(self) -> int:
        """Messages that came and are nowhere; negative when some were never counted in.

        >>> QueueLedger(queue="q", waiting=2, counters={"accepted": 5, "done": 3}).difference
        0
        """
        held = self.waiting + self.blocked + self.delayed + self.unacked
        return self.arrived - held - self.gone

    @property
    def misheld(self) -> int:
        """Messages in the records less those of the ledger; 0 when they were not counted."""
        return 0 if self.recorded is None else self.recorded - self.unacked

    @property
    def misparked(self) -> int:
        """Messages that are parked less those of the ledger; 0 when they were not counted."""
        return 0 if self.parked is None else self.parked - self.blocked

    def reasons(self, queue: LiveQueue) -> Iterator[str]:
        """Yield in words why work of the queue may not start now, by what holds for it."""
        return reasons(
            queue,
            waiting=self.waiting,
            slots=self.slots,
            next_start_ms=self.next_start_ms,
            blocked=self.blocked,
        )

    @property
    def is_neglected(self) -> bool:
        """Whether messages wait that nobody consumes."""
        return self.consumers == 0 and self.waiting + self.blocked + self.due > 0

    @property
    def is_incomplete(self) -> bool:
        """Whether something was dropped, or the ledger does not add up."""
        return (
            self["dropped"] > 0 or self.difference != 0 or self.misheld != 0 or self.misparked != 0
        )

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each reason why the queue is incomplete, with what to do."""
        if dropped := self["dropped"]:
            yield f"{_messages(dropped)} dropped by the queue's overflow policy"
        if self["results_lost"]:
            yield f"{_messages(self['results_lost'])} dropped whose results will never say so"
        if self.difference > 0:
            yield (
                f"{_messages(self.difference)} left uncounted (a stock worker, or by hand); "
                "--rebase books that"
            )
        if self.difference < 0:
            yield (
                f"{_messages(-self.difference)} came uncounted (a stock producer, or older than "
                "the ledger); --rebase books that"
            )
        if self.misheld:
            yield (
                f"the records hold {_messages(self.recorded or 0)} unacknowledged, the ledger says "
                f"{self.unacked:,}: stock tools moved some; --rebase corrects the ledger"
            )
        if self.misparked:
            yield (
                f"{_messages(self.parked or 0)} blocked, the ledger says {self.blocked:,}: "
                "somebody moved some by hand; --rebase corrects the ledger"
            )

    def as_json(self) -> dict[str, Any]:
        """Return every figure under its public name."""
        figures: dict[str, Any] = {
            "queue": self.queue,
            "waiting": self.waiting,
            "blocked": self.blocked,
            "delayed": self.delayed,
            "unacked": self.unacked,
            "waiting_bytes": self.waiting_bytes,
            "oldest_seconds": self.oldest_seconds,
            "dead_letters": self.dead_letters,
            "unfinalised": self.unfinalised,
            "consumers": self.consumers,
        }
        figures |= {name: self[name] for name in ARRIVALS + ENDINGS + DEPARTURES + EVENTS}
        if self.recorded is not None:
            figures["recorded_unacked"] = self.recorded
        figures |= {"difference": self.difference, "incomplete": self.is_incomplete}
        return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The ledgers of all queues at one moment of the server's clock."""

    server_ms: int
    queues: tuple[QueueLedger, ...]

    def __getitem__(self, queue: str) -> QueueLedger:
        return next(one for one in self.queues if one.queue == queue)

    @property
    def is_incomplete(self) -> bool:
        """Whether the ledger of any queue is."""
        return any(queue.is_incomplete for queue in self.queues)

    def as_json(self) -> dict[str, Any]:
        """Return every figure under its public name."""
        return {
            "server_ms": self.server_ms,
            "incomplete": self.is_incomplete,
            "queues": [queue.as_json() for queue in self.queues],
        }


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"


def read(
    client: redis.Redis,
    commands: Commands,
    queues: Sequence[str] | None = None,
    *,
    recount: bool = False,
) -> Ledger:
    """Return the ledgers of queues at one moment; nothing is changed.

    Arguments:
        client: a client that adds no key prefix.
        queues: names of queues of the table; None for all of it.
        recount: also count what is unacknowledged in the records, which takes the server some
            microseconds for each.
    """
    names = list(commands.topology.queues if queues is None else queues)
    names_of, lists = commands.keys, len(commands.keys.steps)
    keys = [names_of.records()[0], names_of.records()[3]]
    for name in names:
        keys += [names_of.ledger(name), names_of.delayed(name)]
        keys += [names_of.dead(name), names_of.dropped(name), names_of.consumers(name)]
        keys += [names_of.queue_gate(name), names_of.queue_rate(name), names_of.blocked(name)]
        keys += names_of.ready_lists(name)
    args = [lists, int(recount), names_of.parked(), PARKED_AT_MOST]
    server_ms, *rows = run_script(client, "ledger", keys, args)
    return Ledger(
        server_ms=int(server_ms),
        queues=tuple(
            _queue(name, row, now_ms=int(server_ms), recount=recount)
            for name, row in zip(names, rows, strict=True)
        ),
    )


def _queue(name: str, row: Sequence[Any], *, now_ms: int, recount: bool) -> QueueLedger:
    waiting, delayed, dead_letters, unfinalised, stamp, recorded, consumers, due, *more = row
    slots, next_start_ms, parked, *flat = more
    counters = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
    return QueueLedger(
        queue=name,
        waiting=int(waiting),
        delayed=int(delayed),
        unacked=counters.pop("unacked", 0),
        blocked=counters.pop("blocked", 0),
        waiting_bytes=max(0, counters.pop("bytes", 0)),
        dead_letters=int(dead_letters),
        unfinalised=int(unfinalised),
        oldest_seconds=max(0, now_ms - int(stamp)) / 1000 if stamp else None,
        recorded=int(recorded) if recount else None,
        consumers=int(consumers),
        due=int(due),
        slots=int(slots),
        next_start_ms=int(next_start_ms),
        parked=int(parked) if recount and parked != b"" else None,
        counters=counters,
    )


def rebase(client: redis.Redis, commands: Commands, ledger: QueueLedger) -> bool:
    """Book a queue's difference as unaccounted, and correct what it says is unacknowledged.

    Neither changes while messages move, so both may have been read some time ago.

    Returns:
        False when somebody else has booked since the ledger was read.
    """
    unaccounted = ledger.misheld + ledger.misparked - ledger.difference
    if not unaccounted and not ledger.misheld and not ledger.misparked:
        return True
    keys = [commands.keys.ledger(ledger.queue)]
    return bool(
        run_script(
            client,
            "rebase",
            keys,
            [unaccounted, ledger.misheld, ledger["unaccounted"], ledger.misparked],
        )
    )
