"""A play about messages: a database beside the reference of what must be in it, and what must hold.

A state machine adds the acts, `tests/contract/test_conservation.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant

from routing.redis import ledger as books
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.topology.model import Topology
from routing.topology.names import dead_queue, dropped_queue
from routing.transport.overflow import STAMP_BYTES
from tests.support.broker import Broker
from tests.support.messages import id_of, task_message
from tests.support.reference import STEPS, Reference
from tests.support.servers import Server

#: About four messages.
BYTES = 4 * len(task_message(queue="bytes", message_id="10")) + 200

TABLE: Mapping[str, Any] = {
    "queues": {
        "free": {"max_dead": 2},
        "reject": {"max_length": 3, "max_delayed": 2},
        "block": {"max_length": 3, "overflow": "block"},
        "oldest": {"max_length": 3, "max_delayed": 2, "overflow": "drop_oldest"},
        "newest": {"max_length": 3, "max_delayed": 2, "overflow": "drop_newest"},
        "dead": {"max_length": 3, "max_delayed": 2, "overflow": "dead_letter", "max_dead": 3},
        "bytes": {"max_bytes": BYTES, "overflow": "drop_oldest"},
        "few bytes": {"max_bytes": BYTES, "max_length": 5},
    },
}
QUEUES = list(TABLE["queues"])


class Play(RuleBasedStateMachine):
    """Two queues of the table, what their producers sent, and the tags of their workers."""

    server: Server
    prefix: str

    def open(self, names: list[str]) -> None:
        """Begin with an empty database and two queues."""
        self.names = names
        self.broker = Broker(self.server.fresh_url(), prefix=self.prefix)
        self.client = self.broker.client
        self.keys = Keys(prefix=self.prefix)
        self.commands = Commands(keys=self.keys, topology=Topology.load(TABLE))
        self.should = Reference(self.commands.topology)
        self.payloads: dict[str, str] = {}
        #: Every tag that was ever given, with its queue and message.
        self.tags: dict[str, tuple[str, str]] = {}
        self.calls = 0
        self.epoch = datetime.now(UTC) + timedelta(hours=1)
        self.grace = False
        #: When the last delay was over: long ago, and each a little later than the one before.
        self.past_ms = self.now_ms() - 10_000_000

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.client.flushdb()
        self.client.close()

    def new(self, queue: str, count: int, step: int) -> list[str]:
        """Make messages, and return their ids."""
        ids = [f"{len(self.payloads) + n}" for n in range(count)]
        for message in ids:
            self.payloads[message] = task_message(queue=queue, message_id=message, priority=step)
            self.should.sizes[message] = len(self.payloads[message]) + STAMP_BYTES
        return ids

    def now_ms(self) -> int:
        """Return the server's clock, in whole seconds."""
        return int(self.client.time()[0]) * 1000

    def some(self, picks: Sequence[int]) -> list[str]:
        """Return tags in fetch order, most of which are held, and some are gone."""
        gone = [tag for tag in self.tags if tag not in self.should.held]
        pool = [*self.should.held, *gone[-3:]]
        chosen = {pool[pick % len(pool)] for pick in picks} if pool else set()
        return sorted(chosen, key=fetch_order)

    def by_queue(self, tags: Sequence[str]) -> dict[str, list[str]]:
        """Return tags by the queue that they are of."""
        grouped: dict[str, list[str]] = {}
        for tag in tags:
            grouped.setdefault(self.tags[tag][0], []).append(tag)
        return grouped

    # -- what must hold

    @invariant()
    def every_message_is_in_its_place(self) -> None:
        payloads = self.waiting_texts()
        for name in (*self.names, *map(dropped_queue, self.names)):
            queue = self.should.queues[name]
            for step in STEPS:
                assert [id_of(text) for text in payloads[name, step]] == queue.ready[step]
            for text in (*payloads[name, STEPS[0]], *payloads[name, STEPS[1]]):
                self.is_as_it_was_sent(text, notice=name not in self.names)
            if name in self.names:
                delayed = [one.message for one in queue.delayed]
                assert [id_of(text) for text in self.broker.delayed(name)] == delayed
                letters = self.broker.payloads(dead_queue(name))
                assert [id_of(letter) for letter in letters] == queue.dead
        records = {tag: record[0]["headers"]["id"] for tag, record in self.broker.records().items()}
        assert records == {tag: record.message for tag, record in self.should.held.items()}

    def waiting_texts(self) -> dict[tuple[str, int], list[str]]:
        pipeline = self.client.pipeline(transaction=False)
        names = (*self.names, *map(dropped_queue, self.names))
        places = [(name, step) for name in names for step in STEPS]
        for name, step in places:
            pipeline.lrange(self.keys.ready(name, step), 0, -1)
        replies = zip(places, pipeline.execute(), strict=True)
        return {place: [text.decode() for text in reversed(found)] for place, found in replies}

    def is_as_it_was_sent(self, text: str, *, notice: bool) -> None:
        """Check a waiting text; what says that a message was dropped has a story of its own."""
        message = id_of(text)
        assert text.startswith(self.payloads[message][:-1])
        if notice:
            return
        self.should.sizes[message] = len(text)
        ours = json.loads(text).get("celeriac", {})
        assert ours.get("redelivered", False) == (message in self.should.redelivered)

    @invariant()
    def the_ledger_balances(self) -> None:
        ledger = books.read(self.client, self.commands, self.names, recount=True)
        payloads = self.waiting_texts()
        for name in self.names:
            book, queue = ledger[name], self.should.queues[name]
            assert (book.difference, book.misheld) == (0, 0)
            counted = {**book.counters, "unacked": book.unacked}
            assert {k: v for k, v in counted.items() if v} == {
                k: v for k, v in queue.counters.items() if v
            }
            assert book.waiting_bytes == sum(len(t) for step in STEPS for t in payloads[name, step])

    @invariant()
    def no_side_key_is_left_behind(self) -> None:
        unacked, index, leases, origins, started = self.keys.records()
        tags = {tag.encode() for tag in self.should.held}
        assert set(self.client.hkeys(unacked)) == set(self.client.hkeys(origins)) == tags
        assert set(self.client.zrange(index, 0, -1)) == tags
        expiries = dict(self.client.zrange(leases, 0, -1, withscores=True))
        now_ms = self.now_ms()
        assert {tag.decode(): expiry < now_ms for tag, expiry in expiries.items()} == {
            tag: record.expired for tag, record in self.should.held.items()
        }
        begun = {tag.encode() for tag, record in self.should.held.items() if record.started}
        assert set(self.client.hkeys(started)) == begun

    @invariant()
    def what_killed_its_worker_says_how_often(self) -> None:
        charged = {name: count for name, (count, _) in self.broker.charges().items()}
        assert charged == {k: v for k, v in self.should.deliveries.items() if v}

    @invariant()
    def a_queue_with_messages_that_nobody_has_seen_has_a_bell(self) -> None:
        for name in self.names:
            bells = self.client.llen(self.keys.bell(name))
            assert bells == 1 if self.should.queues[name].waiting else bells <= 1


def fetch_order(tag: str) -> tuple[str, list[int]]:
    """Return what sorts tags into the order in which their messages were fetched."""
    courier, *numbers = tag.split(":")
    return courier, [int(number) for number in numbers]
