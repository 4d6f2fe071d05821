"""Whatever is done in whatever order, every message is in exactly one place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from routing.message.eta import Delay
from routing.message.evidence import Evidence
from routing.message.letter import parse
from routing.redis.letters import Move, StoredLetters
from routing.redis.values import Burial, Buried, Ending, Fetch, Mark, Return, Settlement
from routing.topology.names import dropped_queue
from tests.support.messages import id_of
from tests.support.play import QUEUES, Play, fetch_order
from tests.support.reference import STEPS, Delayed
from tests.support.servers import Server

ENDINGS = ["done", "failed", "retried", "revoked", "expired", "rejected", "ignored", "started"]
WHY = Evidence(reason="failed", message='"celeriac":{')

#: Which of the two queues of a play: what goes wrong needs several calls about the same messages.
queues = st.sampled_from([0, 0, 1])
terms = st.sampled_from(["", "", "exempt", "whole", "none"])
#: What is requeued for a while.
WAITS = {Mark.LATER, Mark.AGAIN}

#: Which of the tags that were ever fetched: some of them may be gone.
picks = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)

# What has no effect is no step.
if_held = precondition(lambda self: self.tags)
if_dead = precondition(lambda self: any(self.should.queues[q].dead for q in self.names))
if_delayed = precondition(lambda self: any(self.should.queues[q].delayed for q in self.names))
if_expired = precondition(lambda self: any(one.expired for one in self.should.held.values()))
if_charged = precondition(
    lambda self: any(one.message in self.should.deliveries for one in self.should.held.values())
)
if_waiting = precondition(
    lambda self: sum(len(self.should.queues[q].waiting) for q in self.names) > 4
)


class Conservation(Play):
    """Plays producers and workers on a fresh database, beside a reference of what must be.

    A worker that crashed is one that no rule comes back to; a reply that was lost is a call that is
    made again, or given back by enumeration. Tags that have gone stay in play: their worker does
    not know yet.
    """

    @initialize(names=st.lists(st.sampled_from(QUEUES), min_size=2, max_size=2, unique=True))
    def start(self, names: list[str]) -> None:
        self.open(names)
        self.the_broker_is_away_for_a_while()
        self.everybody_had_time_to_renew()
        for queue in (0, 1):
            self.push(queue, 4, STEPS[0], "")
            self.fetch(queue, 2)

    # -- producers

    def applicable(self, terms: Any, bound: int | None) -> Any:
        """Return the terms; without a bound, nobody found out that nothing fits."""
        return "" if terms == "none" and not bound else terms

    @rule(queue=queues, count=st.integers(1, 5), step=st.sampled_from(STEPS), terms=terms)
    def push(self, queue: int, count: int, step: int, terms: Any) -> None:
        name = self.names[queue]
        config = self.should.queues[name].config
        terms = self.applicable(terms, config.max_length or config.max_bytes)
        ids = self.new(name, count, step)
        payloads = [self.payloads[message] for message in ids]
        pushed = self.commands.push(self.client, name, payloads, priority=step, terms=terms)
        expected = self.should.push(name, ids, step, terms)
        assert (pushed.accepted, pushed.dropped) == expected

    @rule(
        queue=queues,
        hours=st.lists(st.integers(0, 3), min_size=1, max_size=3),
        step=st.sampled_from(STEPS),
        terms=terms,
    )
    def delay(self, queue: int, hours: list[int], step: int, terms: Any) -> None:
        name = self.names[queue]
        terms = self.applicable(terms, self.should.queues[name].config.max_delayed)
        ids = self.new(name, len(hours), step)
        # No two are due together: which one would leave first is another test's.
        dues = [hour * 3600.0 + int(message) for hour, message in zip(hours, ids, strict=True)]
        delays = [
            Delay(self.epoch + timedelta(seconds=due), message, self.payloads[message])
            for due, message in zip(dues, ids, strict=True)
        ]
        pushed = self.commands.delay(self.client, name, delays, priority=step, terms=terms)
        delayed = [Delayed(due, message, step) for due, message in zip(dues, ids, strict=True)]
        assert (pushed.accepted, pushed.dropped) == self.should.delay(name, delayed, terms)

    @if_waiting
    @rule(queue=queues)
    def purge(self, queue: int) -> None:
        name = self.names[queue]
        assert self.commands.purge(self.client, name) == self.should.purge(name)
        assert self.commands.purge(self.client, name) == 0

    @if_delayed
    @rule(queue=queues, count=st.integers(1, 3))
    def delays_end(self, queue: int, count: int) -> None:
        name = self.names[queue]
        waiting = [one for one in self.should.queues[name].delayed if not one.over][:count]
        members = self.client.zrange(self.keys.delayed(name), 0, -1)
        over = sum(one.over for one in self.should.queues[name].delayed)
        for one, member in zip(waiting, members[over:], strict=False):
            self.past_ms += 1
            self.client.zadd(self.keys.delayed(name), {member: self.past_ms}, xx=True)
            one.over, one.due = True, self.past_ms - 1e15

    @if_dead
    @rule(
        queue=queues,
        to=queues,
        picks=picks,
        drop=st.sampled_from([False, False, True]),
        twice=st.booleans(),
    )
    def revive(self, queue: int, to: int, picks: list[int], drop: bool, twice: bool) -> None:
        name, target = self.names[queue], self.names[to]
        letters = [parse(name, text) for text in self.client.lrange(self.keys.dead(name), 0, -1)]
        chosen = [letters[pick] for pick in picks if pick < len(letters)]
        moves = [Move(one, b"" if drop else self.payloads[one.id].encode()) for one in chosen]
        stored_letters = StoredLetters(self.client, self.commands)
        moved = [letter.id for letter in stored_letters.move(moves, to=target)]
        assert sorted(moved) == sorted(letter.id for letter in chosen)
        assert not twice or stored_letters.move(moves, to=target) == []
        if drop:
            self.should.forget(name, moved)
        else:
            self.should.revive(name, [(one.id, one.priority) for one in chosen], to=target)

    # -- workers

    def settlement(self, tags: Sequence[str], ending: str) -> Settlement:
        return Settlement([Ending(self.tags[tag][0], ending, tag) for tag in tags])

    @rule(
        worker=st.sampled_from(["w", "x"]),
        asked=st.dictionaries(st.sampled_from([0, 0, 1, 1, 2, 3]), st.integers(1, 4), max_size=3),
        settled=st.one_of(st.just([]), picks),
        ending=st.sampled_from(ENDINGS),
        lost=st.sampled_from(["", "", "", "given back", "crashed"]),
    )
    def exchange(
        self, worker: str, asked: dict[int, int], settled: list[int], ending: str, lost: str
    ) -> None:
        self.calls += 1
        names = [*self.names, *map(dropped_queue, self.names)]
        asked_for = tuple((names[queue], credit) for queue, credit in asked.items())
        fetch = Fetch(f"{worker}:{self.calls}:", asked_for)
        tags = self.some(settled)
        settlement = self.settlement(tags, ending)
        reply = self.commands.exchange(self.client, settlement, fetch)
        self.should.settle(tags, ending)
        expected = []
        for position, (queue, credit) in enumerate(fetch.asked, start=1):
            taken = self.should.fetch(queue, credit, f"{fetch.prefix}{position}:")
            expected += taken
            for n, message in enumerate(taken, start=1):
                self.tags[f"{fetch.prefix}{position}:{n}"] = (queue, message)
            assert reply.left[queue] == len(self.should.queues[queue].waiting)
        assert [id_of(arrival.payload) for arrival in reply.arrivals] == expected
        if lost:
            again = self.commands.exchange(self.client, settlement, Fetch(fetch.prefix, ()))
            assert not again.arrivals
        if lost == "given back":
            for position, (queue, _) in enumerate(fetch.asked):
                returns = [Return(tag) for tag in fetch.tags(position)]
                back = self.should.requeue([r.tag for r in returns], "")
                assert self.commands.requeue(self.client, queue, returns) == back

    @rule(queue=queues, credit=st.integers(1, 4))
    def fetch(self, queue: int, credit: int) -> None:
        self.exchange("w", {queue: credit}, [], "", "")

    @if_charged
    @rule(ending=st.sampled_from(ENDINGS))
    def end_what_was_charged(self, ending: str) -> None:
        held = enumerate(self.should.held.values())
        charged = [n for n, one in held if one.message in self.should.deliveries]
        self.exchange("w", {}, charged, ending, "")

    @if_held
    @rule(picks=picks, mark=st.sampled_from(sorted({*Mark} - WAITS)), twice=st.booleans())
    def requeue(self, picks: list[int], mark: Mark, twice: bool) -> None:
        for queue, tags in self.by_queue(self.some(picks)).items():
            returns = [Return(tag, self.tags[tag][1], mark, "it was lost") for tag in tags]
            back = self.should.requeue(tags, mark)
            assert self.commands.requeue(self.client, queue, returns) == back
            assert not twice or self.commands.requeue(self.client, queue, returns) == 0

    @if_held
    @rule(picks=picks, mark=st.sampled_from(sorted(WAITS)), twice=st.booleans())
    def give_back_later(self, picks: list[int], mark: Mark, twice: bool) -> None:
        for queue, tags in self.by_queue(self.some(picks)).items():
            if queue not in QUEUES:
                continue
            messages = [self.tags[tag][1] for tag in tags]
            returns = [
                Return(tag, message, mark) for tag, message in zip(tags, messages, strict=True)
            ]
            known = set(self.client.zrange(self.keys.delayed(queue), 0, -1))
            back = self.commands.requeue(self.client, queue, returns)
            # No two are due together, and each at a time that is known here.
            dues = [48 * 3600.0 + int(message) for message in messages]
            for member in set(self.client.zrange(self.keys.delayed(queue), 0, -1)) - known:
                due = 48 * 3600 + int(member.decode().partition("#")[2])
                due_ms = int((self.epoch.timestamp() + due) * 1000)
                self.client.zadd(self.keys.delayed(queue), {member: due_ms}, xx=True)
            assert back == self.should.give_back_later(tags, dues)
            assert not twice or self.commands.requeue(self.client, queue, returns) == 0

    @if_held
    @rule(picks=picks, twice=st.booleans())
    def bury(self, picks: list[int], twice: bool) -> None:
        for queue, tags in self.by_queue(self.some(picks)).items():
            if queue not in QUEUES:
                continue
            burials = [Burial(tag, WHY.rest()) for tag in tags]
            assert self.commands.bury(self.client, queue, burials) == Buried(
                *self.should.bury(queue, tags)
            )
            assert not twice or self.commands.bury(self.client, queue, burials) == Buried(0, 0)

    @if_held
    @rule(picks=picks)
    def postpone(self, picks: list[int]) -> None:
        for tag in self.some(picks[:1]):
            queue, message = self.tags[tag]
            if queue not in QUEUES:
                continue
            due = 24 * 3600 + int(message)
            due_ms = int((self.epoch.timestamp() + due) * 1000)
            for _ in range(2):
                assert self.commands.postpone(
                    self.client, queue, tag, message_id=message, due_ms=due_ms
                ) == self.should.postpone(tag, due)

    # -- leases

    @if_held
    @rule(picks=picks, started=st.booleans())
    def renew(self, picks: list[int], started: bool) -> None:
        tags = self.some(picks)
        held = [(tag, "1" if started else "") for tag in tags]
        gone = self.commands.renew(self.client, "w@test", held)
        assert gone == [tag for tag in tags if tag not in self.should.held]
        for record in (self.should.held[tag] for tag in tags if tag not in gone):
            record.started = started  # what ran and waits again has not
            record.expired = False

    @if_held
    @rule(picks=picks, then=st.sampled_from(["reclaim", "reclaim", "renew", ""]))
    def leases_run_out(self, picks: list[int], then: str) -> None:
        for tag in self.some(picks):
            if record := self.should.held.get(tag):
                record.expired = True
                self.client.zadd(self.keys.records()[2], {tag: self.past_ms}, xx=True)
        if then == "reclaim":
            self.reclaim()
        elif then == "renew":
            self.renew(picks, started=False)

    @if_expired
    @rule()
    def reclaim(self) -> None:
        expired = [tag for tag, record in self.should.held.items() if record.expired]
        taken = -1
        if not self.grace:
            taken = self.should.reclaim(sorted(expired, key=fetch_order))
        assert self.commands.reclaim(self.client) == taken
        assert self.commands.reclaim(self.client) == min(taken, 0)

    @if_expired
    @rule()
    def the_broker_is_away_for_a_while(self) -> None:
        self.client.hset(self.keys.reclaiming(), "beat", self.now_ms() - 3_600_000)
        assert self.commands.reclaim(self.client) == -1
        self.grace = True

    @precondition(lambda self: self.grace)
    @rule()
    def everybody_had_time_to_renew(self) -> None:
        self.client.hset(self.keys.reclaiming(), "not_before", 0)
        self.grace = False


@pytest.mark.parametrize("prefix", ["", "shop:"], ids=["plain", "key prefix"])
def test_every_message_is_in_exactly_one_place(valkey: Server, prefix: str) -> None:
    run_state_machine_as_test(
        type("Here", (Conservation,), {"server": valkey, "prefix": prefix}),
        settings=settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            report_multiple_bugs=False,  # shrinking two takes longer than any reader waits
            suppress_health_check=list(HealthCheck),  # a busy machine is no failure
        ),
    )
