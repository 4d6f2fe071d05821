"""Whatever is done in whatever order, every message is in exactly one place."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from routing.redis.delays import Delay
from routing.redis.records import Ending, Settlement
from routing.redis.verbs import Arrival
from tests.support.messages import id_of, ids_of, task_message
from tests.support.rig import Rig
from tests.support.servers import Server
from tests.support.wait import pause

QUEUES = ["q", "other", "small"]
LIMIT = 3
HOUR = timedelta(hours=1)
ENDINGS = ["done", "failed", "rejected"]


class Conservation(RuleBasedStateMachine):
    """Plays producers and workers on a fresh database, and knows where each message must be."""

    server: Server
    prefix: str

    held = Bundle("held")

    @initialize()
    def start(self) -> None:
        self.rig = Rig(self.server.fresh_url(), prefix=self.prefix)
        self.count = 0
        self.ready: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.delayed: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.due: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.unacked: dict[str, Arrival] = {}
        self.started: set[str] = set()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.accepted: Counter[str] = Counter()

    def teardown(self) -> None:
        self.rig.client.flushdb()
        self.rig.client.close()

    @rule(
        queue=st.sampled_from(QUEUES),
        count=st.integers(1, 5),
        terms=st.sampled_from(["", "exempt", "whole"]),
    )
    def push(self, queue: str, count: int, terms: str) -> None:
        ids = [f"{queue}-{self.count + n}" for n in range(count)]
        self.count += count
        texts = [task_message(queue=queue, message_id=i) for i in ids]
        pushed = self.rig.push(texts, queue, terms=terms)
        room = count
        if queue == "small" and terms != "exempt":
            room = max(0, min(count, LIMIT - len(self.ready[queue])))
            room = 0 if terms == "whole" and room < count else room
        assert pushed.accepted == room
        self.ready[queue] += ids[:room]
        self.accepted[queue] += room

    @rule(queue=st.sampled_from(QUEUES), count=st.integers(1, 3), is_due=st.booleans())
    def delay(self, queue: str, count: int, is_due: bool) -> None:
        ids = [f"{queue}-{self.count + n}" for n in range(count)]
        self.count += count
        eta = datetime.now(UTC) + (timedelta() if is_due else HOUR)
        delays = [Delay(eta, i, task_message(queue=queue, message_id=i)) for i in ids]
        assert self.rig.delay(delays, queue).accepted == count
        (self.due if is_due else self.delayed)[queue] += ids
        self.accepted[queue] += count
        pause(0.003)  # the server counts whole milliseconds

    @rule(tag=consumes(held))
    def postpone(self, tag: str) -> None:
        arrival = self.unacked.pop(tag)
        self.started.discard(tag)
        assert self.rig.postpone(arrival, self.rig.server_ms() + 3_600_000)
        self.delayed[arrival.queue].append(id_of(arrival.text))

    @rule(
        target=held,
        asked=st.dictionaries(st.sampled_from(QUEUES), st.integers(0, 4), min_size=1),
        settled=st.lists(consumes(held), max_size=3, unique=True),
        ending=st.sampled_from(ENDINGS),
    )
    def exchange(self, asked: dict[str, int], settled: list[str], ending: str) -> object:
        endings = []
        for tag in settled:
            queue = self.unacked.pop(tag).queue
            self.started.discard(tag)
            endings.append(Ending(queue, ending, tag, ""))
            self.ended[queue, ending] += 1
        reply = self.rig.exchange(Settlement(endings), **asked)
        for queue in asked:
            self.ready[queue] += self.due[queue]
            self.due[queue] = []
        expected = [i for queue, credit in asked.items() for i in self.take(queue, credit)]
        assert [id_of(arrival.text) for arrival in reply.arrivals] == expected
        assert reply.left == {queue: len(self.ready[queue]) for queue in asked}
        self.unacked |= {arrival.tag: arrival for arrival in reply.arrivals}
        return multiple(*(arrival.tag for arrival in reply.arrivals))

    def take(self, queue: str, credit: int) -> list[str]:
        taken, self.ready[queue] = self.ready[queue][:credit], self.ready[queue][credit:]
        return taken

    @rule(tags=st.lists(consumes(held), min_size=1, max_size=4, unique=True))
    def give_back(self, tags: list[str]) -> None:
        for queue in QUEUES:
            arrivals = [a for a in map(self.unacked.get, tags) if a and a.queue == queue]
            if not arrivals:
                continue
            assert self.rig.give_back(arrivals) == len(arrivals)
            self.ready[queue][:0] = [id_of(arrival.text) for arrival in arrivals]
        for tag in tags:
            self.unacked.pop(tag)
        self.started -= set(tags)

    @rule(tags=st.lists(held, min_size=1, max_size=4, unique=True), gone=st.booleans())
    def renew_what_was_started(self, tags: list[str], gone: bool) -> None:
        there = [self.unacked[tag] for tag in tags if tag in self.unacked]
        self.started |= {arrival.tag for arrival in there}
        lost = [Arrival("w:0:1:1", "q", there[0].text)] if gone and there else []
        assert self.rig.renew([*lost, *there], started=True) == [arrival.tag for arrival in lost]

    @rule(tags=st.lists(consumes(held), min_size=1, max_size=4, unique=True))
    def take_from_a_worker_that_has_gone(self, tags: list[str]) -> None:
        taken = [self.unacked.pop(tag) for tag in tags]
        charged = [id_of(arrival.text) for arrival in taken if arrival.tag in self.started]
        self.started -= set(tags)
        before = self.rig.deliveries()
        self.rig.let_leases_run_out(taken)
        assert self.rig.reclaim() == len(taken)
        taken.sort(key=lambda arrival: [int(n) for n in arrival.tag.split(":")[1:]])
        for arrival in reversed(taken):
            self.ready[arrival.queue].insert(0, id_of(arrival.text))
        assert self.rig.deliveries() == before | {i: before.get(i, 0) + 1 for i in charged}

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        places = (self.ready, self.due, self.delayed)
        count = sum(len(place[queue]) for place in places)
        assert self.rig.purge(queue) == count
        self.ended[queue, "purged"] += count
        for place in places:
            place[queue] = []

    @invariant()
    def every_message_is_in_its_place(self) -> None:
        for queue, ids in self.ready.items():
            assert self.rig.ready_ids(queue) == ids
            delayed = self.due[queue] + self.delayed[queue]
            assert sorted(ids_of(self.rig.broker.delayed(queue))) == sorted(delayed)
        assert set(self.rig.broker.records()) == set(self.unacked)

    @invariant()
    def no_side_key_is_left_behind(self) -> None:
        unacked, index, leases, origins, _, started = self.rig.keys.records()
        client = self.rig.broker.client
        tags = {tag.encode() for tag in self.unacked}
        assert set(client.hkeys(unacked)) == set(client.hkeys(origins)) == tags
        assert set(client.zrange(index, 0, -1)) == set(client.zrange(leases, 0, -1)) == tags
        assert set(client.hkeys(started)) == {tag.encode() for tag in self.started}

    @invariant()
    def the_ledger_balances(self) -> None:
        for queue in QUEUES:
            ledger = self.rig.broker.ledger(queue)
            unacked = sum(arrival.queue == queue for arrival in self.unacked.values())
            assert ledger.get("accepted", 0) == self.accepted[queue]
            assert ledger.get("unacked", 0) == unacked
            for ending in (*ENDINGS, "purged"):
                assert ledger.get(ending, 0) == self.ended[queue, ending]
            endings = sum(ledger.get(ending, 0) for ending in (*ENDINGS, "purged"))
            waiting = len(self.ready[queue]) + len(self.due[queue]) + len(self.delayed[queue])
            assert ledger.get("accepted", 0) == waiting + unacked + endings
            size = sum(len(text) for text in self.rig.broker.texts(queue))
            assert self.rig.broker.waiting_bytes(queue) == size

    @invariant()
    def a_queue_with_messages_that_nobody_has_seen_has_a_bell(self) -> None:
        for queue, ids in self.ready.items():
            assert self.rig.bells(queue) <= 1
            if ids:
                assert self.rig.bells(queue) == 1


@pytest.mark.parametrize("prefix", ["", "shop:"], ids=["plain", "key prefix"])
def test_every_message_is_in_exactly_one_place(valkey: Server, prefix: str) -> None:
    run_state_machine_as_test(
        type("Here", (Conservation,), {"server": valkey, "prefix": prefix}),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),  # a busy machine is no failure
        ),
    )
