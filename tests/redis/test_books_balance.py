"""Whatever is done in whatever order, and done again when answers are lost: the books balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from routing.message.eta import Delay
from routing.message.gate import with_mark
from routing.redis import ledger as books
from routing.redis.letters import Move, StoredLetters
from routing.redis.values import Arrival, Burial, Ending, Mark, Settlement
from tests.support.messages import id_of, task_message
from tests.support.rig import Rig
from tests.support.servers import Server

TABLE = {
    "queues": {
        "plain": {},
        "reject": {"max_length": 3, "max_delayed": 2},
        "oldest": {"max_length": 3, "max_delayed": 2, "overflow": "drop_oldest"},
        "newest": {"max_length": 3, "max_delayed": 2, "overflow": "drop_newest"},
        "letters": {
            "max_length": 3,
            "max_delayed": 2,
            "overflow": "dead_letter",
            "max_dead": 2,
        },
        "heavy": {"max_bytes": 2_000, "overflow": "drop_oldest"},
    },
    "limits": {"limited": {"concurrency": 2, "key": "k"}, "paced": {"rate": 20}},
}
QUEUES = list(TABLE["queues"])
#: What the queues' own gates let pass, in their order.
GATES = ("3:0:1", "0:0:1", "2:50:1", "2:0:2", "0:20:1", "1:0:1")
#: The gates that messages are marked for; most are for none.
MARKS = ("", "", "limited|a", "limited|b", "paced")
REFUSING = {"plain", "reject"}

queues = st.sampled_from(QUEUES)
counts = st.integers(1, 5)
terms = st.sampled_from(["", "exempt", "whole"])
endings = st.sampled_from(["done", "failed", "retried", "expired", "started"])
#: Which of the held messages; numbers above their count go round.
picks = st.lists(st.integers(0, 20), min_size=1, max_size=4)
something_is_held = precondition(lambda machine: bool(machine.unacked))


class Balance(RuleBasedStateMachine):
    """Plays producers, workers and operators, some of whom do everything twice."""

    server: Server

    @initialize()
    def start(self) -> None:
        self.rig = Rig(self.server.fresh_url(), table=TABLE)
        self.numbers = iter(range(1, 10**6))
        self.entered: dict[str, set[str]] = {queue: set() for queue in QUEUES}
        self.unacked: dict[str, Arrival] = {}
        self.left: Counter[tuple[str, str]] = Counter()
        self.left_ids: dict[str, set[str]] = {queue: set() for queue in QUEUES}
        self.uncounted: Counter[str] = Counter()
        self.replayed: Counter[str] = Counter()

    def teardown(self) -> None:
        self.rig.client.flushdb()
        self.rig.client.close()

    # -- producers

    @rule(queue=queues, count=counts, terms=terms, priority=st.sampled_from([0, 6]))
    def push(self, queue: str, count: int, terms: str, priority: int) -> None:
        ids = self.new_ids(count)
        payloads = [marked_message(queue, i) for i in ids]
        pushed = self.rig.push(payloads, queue, terms=terms, priority=priority)
        self.enter(queue, ids, pushed.accepted)

    @rule(queue=queues, count=counts, terms=terms, seconds=st.sampled_from([0, 3600]))
    def delay(self, queue: str, count: int, terms: str, seconds: int) -> None:
        ids = self.new_ids(count)
        eta = datetime.now(UTC) + timedelta(seconds=seconds)
        delays = [Delay(eta, i, marked_message(queue, i)) for i in ids]
        self.enter(queue, ids, self.rig.delay(delays, queue, terms=terms).accepted)

    @rule(queue=st.sampled_from(["plain", "reject"]))
    def push_as_stock_celery(self, queue: str) -> None:
        (i,) = self.new_ids(1)
        self.rig.client.lpush(self.rig.keys.ready(queue), task_message(message_id=i))
        self.entered[queue].add(i)
        self.uncounted[queue] += 1

    def new_ids(self, count: int) -> list[str]:
        return [str(next(self.numbers)) for _ in range(count)]

    def enter(self, queue: str, ids: Sequence[str], accepted: int) -> None:
        assert queue != "plain" or accepted == len(ids)
        assert queue in REFUSING or accepted == len(ids)
        self.entered[queue].update(ids[:accepted])

    # -- workers

    @rule(credit=st.integers(1, 4))
    def fetch(self, credit: int) -> None:
        self.exchange(Settlement([]), dict.fromkeys(QUEUES, credit))

    @something_is_held
    @rule(
        picks=picks,
        ending=endings,
        asked=st.dictionaries(queues, st.integers(0, 4)),
        again=st.booleans(),
    )
    def settle(self, picks: list[int], ending: str, asked: dict[str, int], again: bool) -> None:
        gone = self.take(picks)
        settlement = Settlement([Ending(a.queue, ending, a.tag) for a in gone])
        self.leave(gone, ending)
        if again:
            self.rig.exchange(settlement)
        self.exchange(settlement, asked)

    def exchange(self, settlement: Settlement, asked: dict[str, int]) -> None:
        gates = tuple(GATES[QUEUES.index(queue)] for queue in asked)
        arrivals = self.rig.exchange(settlement, gates, **asked).arrivals
        self.unacked |= {arrival.tag: arrival for arrival in arrivals}

    @something_is_held
    @rule(picks=picks, mark=st.sampled_from(list(Mark)), again=st.booleans())
    def requeue(self, picks: list[int], mark: Mark, again: bool) -> None:
        for arrivals in by_queue(self.take(picks)):
            assert self.rig.mark(arrivals, mark, "told so") == len(arrivals)
            if again:
                assert self.rig.mark(arrivals, mark, "told so") == 0

    @something_is_held
    @rule(picks=picks, ran=st.booleans())
    def die(self, picks: list[int], ran: bool) -> None:
        arrivals = self.take(picks)
        self.rig.renew(arrivals, started=ran)
        self.rig.let_leases_run_out(arrivals)
        assert self.rig.reclaim() == len(arrivals)

    @something_is_held
    @rule(picks=picks, again=st.booleans())
    def bury(self, picks: list[int], again: bool) -> None:
        for arrivals in by_queue(self.take(picks)):
            burials = [Burial(a.tag, '"reason":"failed"}', "") for a in arrivals]
            for _ in range(1 + again):
                self.rig.commands.bury(self.rig.client, arrivals[0].queue, burials)

    @something_is_held
    @rule(picks=picks, again=st.booleans())
    def postpone(self, picks: list[int], again: bool) -> None:
        for arrival in self.take(picks):
            assert self.rig.postpone(arrival, self.rig.server_ms() + 3_600_000)
            if again:
                assert not self.rig.postpone(arrival, self.rig.server_ms())

    def take(self, picks: Sequence[int]) -> list[Arrival]:
        tags = list(self.unacked)
        chosen = dict.fromkeys(tags[pick % len(tags)] for pick in picks)
        return [self.unacked.pop(tag) for tag in chosen]

    # -- operators

    @rule(queue=st.sampled_from(["plain", "letters"]))
    def purge(self, queue: str) -> None:
        ids = [*self.ready(queue), *self.delayed(queue), *map(id_of, self.blocked(queue))]
        assert self.rig.purge(queue) == len(ids)
        self.left[queue, "purged"] += len(ids)
        self.left_ids[queue].update(ids)

    @rule(queue=queues, to=queues, count=counts, again=st.booleans())
    def replay(self, queue: str, to: str, count: int, again: bool) -> None:
        self.move(queue, to, count, again=again, drops=False)

    @rule(queue=queues, count=counts)
    def give_up(self, queue: str, count: int) -> None:
        self.move(queue, "", count, again=False, drops=True)

    def move(self, queue: str, to: str, count: int, *, again: bool, drops: bool) -> None:
        """Take letters out; those that are replayed get new ids, to be told from their past."""
        letters = list(
            islice(StoredLetters(self.rig.client, self.rig.commands).newest(queue), count)
        )
        ids = self.new_ids(len(letters))
        payloads = [task_message(queue=to, message_id=i) for i in ids]
        moves = [
            Move(a, b"" if drops else b.encode()) for a, b in zip(letters, payloads, strict=True)
        ]
        for n in range(1 + again):
            moved = StoredLetters(self.rig.client, self.rig.commands).move(moves, to=to or queue)
            assert len(moved) == (0 if n else len(letters))
        if not drops:
            self.entered[to].update(ids)
            self.replayed[queue] += len(letters)
            self.left_ids[queue].update(letter.id for letter in letters)

    @rule(queue=queues)
    def rebase(self, queue: str) -> None:
        client, commands = self.rig.client, self.rig.commands
        assert books.rebase(client, commands, books.read(client, commands, recount=True)[queue])
        self.uncounted[queue] = 0

    def leave(self, arrivals: Sequence[Arrival], name: str) -> None:
        for arrival in arrivals:
            self.left[arrival.queue, name] += 1
            self.left_ids[arrival.queue].add(id_of(arrival.payload))

    # -- what the server has

    def payloads(self, queue: str) -> list[str]:
        broker = self.rig.broker
        return [text for step in (0, 3, 6, 9) for text in broker.payloads(queue, step=step)]

    def ready(self, queue: str) -> list[str]:
        return [id_of(text) for text in self.payloads(queue)]

    def blocked(self, queue: str) -> list[str]:
        """Return the payloads that are parked for a gate."""
        client, found = self.rig.client, []
        for step in (0, 3, 6, 9):
            ready = self.rig.keys.ready(queue, step)
            for key in client.scan_iter(f"{self.rig.keys.parked()}{len(ready)}:{ready}task:*"):
                found += [text.decode() for text in client.lrange(key, 0, -1)]
        return found

    def delayed(self, queue: str) -> list[str]:
        values = self.rig.broker.client.hvals(self.rig.keys.delayed_payloads(queue))
        return [id_of(value[value.index(b"{") :]) for value in values]

    @invariant()
    def the_ledger_adds_up(self) -> None:
        ledger = books.read(self.rig.client, self.rig.commands, recount=True)
        for at in ledger.queues:
            assert at.difference == -self.uncounted[at.queue], at
            assert (at.misheld, at.misparked) == (0, 0)
            assert at.blocked == len(self.blocked(at.queue))
            assert at.unacked == sum(a.queue == at.queue for a in self.unacked.values())
            kept = at["dead"] - at["dead_trimmed"] - self.replayed[at.queue]
            assert at.dead_letters == kept
        for (queue, name), count in self.left.items():
            assert ledger[queue][name] == count

    @invariant()
    def every_message_is_in_one_place_and_no_message_is_gone(self) -> None:
        trimmed = {q.queue: q["dead_trimmed"] for q in self.ledger()}
        for queue, entered in self.entered.items():
            unacked = [id_of(a.payload) for a in self.unacked.values() if a.queue == queue]
            places = [*self.ready(queue), *self.delayed(queue), *unacked]
            places += [id_of(text) for text in self.blocked(queue)]
            places += [*self.left_ids[queue], *self.ready(f"{queue}.dead")]
            # A dead letter of a bound is among the dropped too, for its result.
            places += self.ready(f"{queue}.dropped") if queue != "letters" else []
            assert len(places) == len(set(places))
            assert set(places) <= entered
            assert len(entered) - len(places) == trimmed[queue]

    @invariant()
    def the_gauge_of_bytes_is_true(self) -> None:
        for at in self.ledger():
            if not self.uncounted[at.queue] and not at["unaccounted"]:
                texts = [*self.payloads(at.queue), *self.blocked(at.queue)]
                assert at.waiting_bytes == sum(map(len, texts))

    @invariant()
    def the_gates_hold_what_is_held(self) -> None:
        client, keys = self.rig.client, self.rig.keys
        held: Counter[bytes] = Counter()
        for tag, noted in client.hgetall(keys.gated()).items():
            assert tag.decode() in self.unacked
            held.update(noted.split(b"\n")[2::2])
        for gate, count in held.items():
            slots = [int(n) for n in client.hvals(keys.gate(gate.decode()))]
            assert sum(slots) == count
            limit = (
                2 if gate.startswith(b"task:") else int(GATES[QUEUES.index(gate[6:].decode())][0])
            )
            assert len(slots) <= limit
        assert len(list(client.scan_iter(keys.gate("*")))) == len(held)

    def ledger(self) -> Any:
        return books.read(self.rig.client, self.rig.commands).queues


def marked_message(queue: str, message_id: str) -> str:
    """Return a message as a producer of ours makes it, marked for one of the gates."""
    return with_mark(
        task_message(queue=queue, message_id=message_id), MARKS[int(message_id) % len(MARKS)]
    )


def by_queue(arrivals: Sequence[Arrival]) -> Iterator[list[Arrival]]:
    for queue in QUEUES:
        if ours := [arrival for arrival in arrivals if arrival.queue == queue]:
            yield ours


@pytest.mark.slow
def test_the_books_balance_whatever_is_done(valkey: Server) -> None:
    run_state_machine_as_test(
        type("Here", (Balance,), {"server": valkey}),
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),  # a busy machine is no failure
        ),
    )
