"""One gate at the broker decides what may start: slots of all workers, and a rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pytest

from routing.deadletters.letter import revived
from routing.redis import ledger as books
from routing.redis.commands import Commands
from routing.redis.letters import Move, StoredLetters
from routing.redis.values import Arrival, Burial, Ending, Exchanged, Fetch, Mark, Settlement
from routing.topology.limits import gate_text
from routing.topology.live import with_values
from routing.topology.model import Topology
from routing.topology.queue import LiveQueue
from tests.redis.conftest import SERVERS
from tests.support.messages import id_of, task_message
from tests.support.rig import NOTHING, Rig
from tests.support.servers import Server
from tests.support.wait import eventually

#: Bytes of a marked message at the broker, or some more.
SIZE = len(task_message(message_id="1")) + 70

TABLE: dict[str, Any] = {
    "queues": {
        "q": {},
        "other": {},
        "small": {"max_length": 3},
        "newest": {"max_length": 3, "overflow": "drop_oldest"},
        "heavy": {"max_bytes": 3 * SIZE + 50, "overflow": "drop_oldest"},
    },
    "limits": {
        "shop.send": {"concurrency": 2},
        "shop.slow": {"rate": "20/s"},
        "shop.host": {"concurrency": 1, "key": "host"},
    },
}


def marked(number: int, gate: str = "", **options: Any) -> str:
    """Return a message as a producer of ours makes it."""
    text = task_message(message_id=str(number), **options)
    return f'{text[:-1]},"celeriac":{{"gate":"{gate}"}}}}' if gate else text


class Workers:
    """Workers that share the gates of a broker."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.limits, self._calls = rig, {"q": {}}, count(1)
        self.unit = 1

    def limit(self, queue: str = "q", **values: Any) -> None:
        self.limits[queue] = values

    def exchange(
        self, worker: str = "w", *, settled: Sequence[Arrival] = (), **asked: int
    ) -> Exchanged:
        gates = tuple(
            gate_text(
                with_values(q, LiveQueue(), self.limits.get(q, {})),
                unit=self.unit,
                has_limits=bool(self.rig.commands.topology.limits),
            )
            for q in asked
        )
        fetch = Fetch(f"{worker}:{next(self._calls)}:", tuple(asked.items()), gates=gates)
        settlement = Settlement([Ending(a.queue, "done", a.tag) for a in settled])
        return self.rig.commands.exchange(self.rig.client, settlement, fetch)

    def fetch(self, credit: int = 100, worker: str = "w", queue: str = "q") -> list[Arrival]:
        return self.exchange(worker, **{queue: credit}).arrivals

    def bells(self) -> int:
        return sum(self.rig.client.llen(self.rig.keys.bell(q)) for q in ("q", "other"))

    def holding(self, gate: str = "queue:q") -> int:
        return int(self.rig.client.hlen(self.rig.keys.gate(gate)))


@pytest.fixture(params=SERVERS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    name, _, prefixed = request.param.partition(" with ")
    server: Server = request.getfixturevalue({"valkey": "valkey", "redis": "redis_server"}[name])
    rig = Rig(server.fresh_url(), prefix="shop:" if prefixed else "", table=TABLE)
    yield rig
    assert_books_balance(rig)
    rig.client.close()


@pytest.fixture
def workers(rig: Rig) -> Workers:
    return Workers(rig)


def assert_books_balance(rig: Rig) -> None:
    for one in books.read(rig.client, rig.commands, recount=True).queues:
        assert (one.difference, one.misheld, one.misparked) == (0, 0, 0), one


def ids(arrivals: Sequence[Arrival]) -> list[int]:
    return [int(id_of(a.payload)) for a in arrivals]


class TestConcurrency:
    def test_all_workers_share_the_slots_of_a_queue(self, rig: Rig, workers: Workers) -> None:
        workers.limit(concurrency=3)
        rig.push([marked(n) for n in range(10)])
        assert ids(workers.fetch(2, "a")) == [0, 1]
        assert ids(workers.fetch(5, "b")) == [2]
        assert workers.fetch(5, "a") == []

    def test_an_ending_frees_a_slot_for_the_same_call(self, rig: Rig, workers: Workers) -> None:
        workers.limit(concurrency=1)
        rig.push([marked(n) for n in range(3)])
        first = workers.fetch()
        assert ids(workers.exchange(settled=first, q=5).arrivals) == [1]
        assert workers.holding() == 1

    @pytest.mark.parametrize("way", ["settled", "requeued", "later", "postponed", "buried", "died"])
    def test_whatever_takes_a_message_out_frees_its_slot(
        self, rig: Rig, workers: Workers, way: str
    ) -> None:
        workers.limit(concurrency=1)
        rig.push([marked(n) for n in range(2)])
        held = workers.fetch()
        assert workers.holding() == 1
        match way:
            case "settled":
                rig.settle(held)
            case "requeued":
                rig.requeue(held)
            case "later":
                rig.mark(held, Mark.LATER)
            case "postponed":
                rig.postpone(held[0], rig.server_ms() + 60_000)
            case "buried":
                rig.commands.bury(rig.client, "q", [Burial(held[0].tag, '"reason":"failed"}')])
            case "died":
                rig.let_leases_run_out(held)
                rig.reclaim()
        assert workers.holding() == 0
        assert rig.client.exists(rig.keys.gated()) == 0
        assert workers.bells() == 1, "somebody is told"
        assert len(workers.fetch()) == 1

    def test_what_is_blocked_rings_nobody(self, rig: Rig, workers: Workers) -> None:
        workers.limit(concurrency=1)
        rig.push([marked(n) for n in range(3)])
        held = workers.fetch()
        reply = workers.exchange("b", q=5)
        assert (reply.left["q"], reply.due_ms, workers.bells()) == (0, {}, 0)
        rig.push([marked(9)])
        assert workers.bells() == 0
        rig.settle(held)
        assert workers.bells() == 1

    def test_what_was_fetched_before_counts(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n) for n in range(6)])
        before = workers.fetch(3)
        workers.limit(concurrency=3)
        assert workers.fetch() == []
        assert len(workers.exchange(settled=before[:2], q=9).arrivals) == 2

    def test_what_was_fetched_while_there_was_none_counts_beside_what_was_before(
        self, rig: Rig, workers: Workers
    ) -> None:
        rig.push([marked(n) for n in range(12)])
        workers.limit(concurrency=2)
        first = workers.fetch()
        workers.limit()
        between = workers.fetch(4)
        assert (len(first), len(between), workers.holding()) == (2, 4, 2)
        workers.limit(concurrency=2)
        assert workers.fetch() == []
        assert workers.holding() == 6
        assert workers.exchange(settled=[*first, *between[:2]], q=9).arrivals == []
        assert len(workers.exchange(settled=between[2:], q=9).arrivals) == 2

    def test_a_batch_takes_one_slot(self, rig: Rig, workers: Workers) -> None:
        workers.limit(concurrency=2)
        workers.unit = 10
        rig.push([marked(n) for n in range(40)])
        first = workers.fetch(13)
        assert (len(first), workers.holding()) == (13, 2)
        assert workers.fetch() == []
        rig.settle(first[:10])
        assert (len(workers.fetch()), workers.holding()) == (10, 2)

    @pytest.mark.parametrize(("concurrency", "fetched"), [(2, [0, 1, 5, 6]), (9, [0, 1, 2])])
    def test_a_queue_whose_gate_is_closed_keeps_no_slots_from_others(
        self, rig: Rig, workers: Workers, concurrency: int, fetched: list[int]
    ) -> None:
        rig.push([marked(n) for n in range(5)])
        rig.push([marked(n) for n in range(5, 7)], "other")
        gates = (f"{concurrency}:0:1", "0:0:1")
        fetch = Fetch("w:90:", (("q", 3), ("other", 3)), places=9, per_slot=(0, 1), gates=gates)
        assert ids(rig.commands.exchange(rig.client, NOTHING, fetch).arrivals) == fetched


class TestRate:
    def test_starts_come_at_the_rate(self, rig: Rig, workers: Workers) -> None:
        workers.limit(rate="100/s")
        rig.push([marked(n) for n in range(1000)])
        began, started = rig.server_ms(), 0
        while rig.server_ms() < began + 1000:
            arrivals = workers.fetch()
            started += len(arrivals)
            rig.settle(arrivals)
        seconds = (rig.server_ms() - began) / 1000
        # At most a tenth of a second's worth at once, at the beginning.
        assert 0.95 <= (started - 10) / (100 * seconds) <= 1.05

    def test_one_worker_is_told_when_the_next_start_is(self, rig: Rig, workers: Workers) -> None:
        workers.limit(rate="1/s")
        rig.push([marked(n) for n in range(5)])
        reply = workers.exchange("a", q=5)
        assert len(reply.arrivals) == 1
        assert 0 < reply.due_ms["q"] - reply.server_ms <= 1000
        other = workers.exchange("b", q=5)
        assert (other.arrivals, other.left["q"], other.due_ms) == ([], 0, {})
        rig.push([marked(9)])
        assert workers.bells() == 0

    def test_who_has_no_more_place_lets_another_one_be_told(
        self, rig: Rig, workers: Workers
    ) -> None:
        workers.limit(rate="1/s")
        rig.push([marked(n) for n in range(5)])
        assert not workers.exchange("a", q=1).due_ms
        assert workers.bells() == 1
        assert workers.exchange("b", q=1).due_ms
        assert workers.bells() == 0

    def test_a_batch_is_one_start(self, rig: Rig, workers: Workers) -> None:
        workers.limit(rate="1/s")
        workers.unit = 10
        rig.push([marked(n) for n in range(40)])
        assert len(workers.fetch()) == 10


class TestTasksAndKeys:
    def test_a_blocked_task_lets_others_of_its_queue_pass(self, rig: Rig, workers: Workers) -> None:
        rig.push([*(marked(n, "shop.send") for n in range(5)), marked(5), marked(6)])
        assert ids(workers.fetch(6)) == [0, 1, 5, 6]
        assert books.read(rig.client, rig.commands)["q"].blocked == 3
        rig.push([marked(7)])
        assert workers.bells() == 1, "a blocked task shuts no queue"
        assert ids(workers.fetch(6)) == [7]

    def test_what_is_blocked_starts_in_order_when_a_slot_is_free(
        self, rig: Rig, workers: Workers
    ) -> None:
        rig.push([marked(n, "shop.send") for n in range(6)])
        held = workers.fetch()
        assert (ids(held), workers.bells()) == ([0, 1], 0)
        rig.settle(held[:1])
        assert workers.bells() == 1
        rig.push([marked(6, "shop.send")])
        assert ids(workers.fetch()) == [2]
        rig.settle(held[1:])
        assert ids(workers.fetch()) == [3]

    def test_urgent_messages_of_a_gate_go_first(self, rig: Rig, workers: Workers) -> None:
        held = [marked(n, "shop.send") for n in range(4)]
        rig.push(held, priority=9)
        first = workers.fetch()
        rig.push([marked(9, "shop.send")])
        workers.fetch()
        rig.settle(first[:1])
        assert ids(workers.fetch()) == [9]

    def test_each_key_has_a_gate_of_its_own(self, rig: Rig, workers: Workers) -> None:
        gates = ["shop.host|a", "shop.host|a", "shop.host|b", "shop.host|b", "shop.host|c"]
        rig.push([marked(n, gate) for n, gate in enumerate(gates)])
        held = workers.fetch()
        assert ids(held) == [0, 2, 4]
        assert ids(workers.exchange(settled=held, q=9).arrivals) == [1, 3]

    def test_every_key_has_its_turn(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(10 * k + n, f"shop.host|{k}") for k in range(1, 4) for n in range(3)])
        held, order = workers.fetch(), []
        rig.settle(held)
        for _ in range(6):
            rig.let_pass(0.002)  # the clock tells whose turn it is
            held = workers.fetch(1)
            order += [n // 10 for n in ids(held)]
            rig.settle(held)
        assert sorted(order[:3]) == sorted(order[3:]) == [1, 2, 3]

    def test_a_task_has_a_rate(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.slow") for n in range(10)])
        reply = workers.exchange(q=100)
        assert len(reply.arrivals) == 3
        assert 0 < reply.due_ms["q"] - reply.server_ms <= 50
        rig.let_pass(0.05)
        assert len(workers.fetch()) in (1, 2)

    def test_one_gate_holds_in_several_queues(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.send") for n in range(2)], "other")
        rig.push([marked(n, "shop.send") for n in range(2, 4)])
        held = workers.fetch(queue="other")
        assert workers.fetch() == []
        rig.settle(held)
        assert rig.client.llen(rig.keys.bell("q")) == 1
        assert ids(workers.fetch()) == [2, 3]

    def test_a_limit_that_is_gone_blocks_nobody(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.send") for n in range(4)])
        workers.fetch()
        rig.commands.topology.limits.pop("shop.send")
        rig.commands.topology.__dict__.pop("limits_text", None)
        rig.client.zadd(rig.keys.blocked("q"), {"task:shop.send": 0})
        try:
            assert ids(workers.fetch()) == [2, 3]
        finally:
            rig.commands.topology.limits.update(type(rig.commands.topology).load(TABLE).limits)

    def test_what_is_parked_starts_when_there_are_no_limits_any_more(
        self, rig: Rig, workers: Workers
    ) -> None:
        rig.push([marked(n, "shop.send") for n in range(4)])
        held = workers.fetch()
        rig.settle(held)
        rig.commands = Commands(keys=rig.keys, topology=Topology.load({"queues": {"q": {}}}))
        assert ids(rig.fetch()) == [2, 3]
        assert not rig.client.exists(rig.keys.blocked("q"))

    def test_a_mark_survives_redelivery_and_delay(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.host|a") for n in range(1)])
        (held,) = workers.fetch()
        rig.mark([held], Mark.COUNTED, "it died")
        (held,) = workers.fetch()
        assert b'"gate":"shop.host|a"' in held.payload
        assert b'"deliveries":1' in held.payload
        rig.postpone(held, rig.server_ms())
        (held,) = eventually(workers.fetch)
        assert b'"gate":"shop.host|a"' in held.payload
        assert workers.holding("task:shop.host|a") == 1

    def test_what_is_blocked_fills_a_bounded_queue(self, rig: Rig, workers: Workers) -> None:
        assert rig.push([marked(n, "shop.host|a") for n in range(3)], "small").accepted == 3
        assert len(workers.fetch(queue="small")) == 1
        assert rig.push([marked(n, "shop.host|a") for n in range(3, 6)], "small").accepted == 1

    @pytest.mark.parametrize("queue", ["newest", "heavy"])
    def test_what_is_blocked_is_not_dropped_to_make_room(
        self, rig: Rig, workers: Workers, queue: str
    ) -> None:
        rig.push([marked(n, "shop.host|a") for n in range(3)], queue)
        workers.fetch(queue=queue)
        assert books.read(rig.client, rig.commands)[queue].blocked == 2
        for n in range(10, 30, 5):
            pushed = rig.push([marked(n + k, "shop.host|a") for k in range(5)], queue)
            assert pushed.accepted == 5
        assert books.read(rig.client, rig.commands)[queue].blocked == 2
        assert rig.ready_ids(queue) == ["29"]

    def test_a_purge_drops_what_is_blocked(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.send") for n in range(5)])
        workers.fetch()
        held = workers.exchange(q=1, other=1)
        assert rig.purge("q") == 3
        assert not rig.client.keys("*parked*")
        assert not held.arrivals

    def test_an_ending_rings_no_queue_that_was_purged(self, rig: Rig, workers: Workers) -> None:
        rig.push([marked(n, "shop.send") for n in range(5)])
        held = workers.fetch()
        rig.purge("q")
        rig.settle(held)
        assert workers.bells() == 0
        assert not rig.client.keys("*waiting:*")

    def test_a_dead_letter_keeps_its_gate_when_it_is_replayed(
        self, rig: Rig, workers: Workers
    ) -> None:
        rig.push([marked(1, "shop.host|a")])
        (held,) = workers.fetch()
        rig.commands.bury(rig.client, "q", [Burial(held.tag, '"reason":"failed"}')])
        stored = StoredLetters(rig.client, rig.commands)
        (letter,) = stored.newest("q")
        assert stored.move([Move(letter, revived(letter, queue="q"))], to="q")
        (held,) = workers.fetch()
        assert workers.holding("task:shop.host|a") == 1


def commands_of(rig: Rig, settlement: Settlement = NOTHING, **asked: int) -> Counter[str]:
    """Return how often an exchange runs each command."""
    rig.client.config_resetstat()
    rig.exchange(settlement, **asked)
    stats: Any = rig.client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()})


def test_without_limits_a_fetch_runs_no_command_of_a_gate(rig: Rig) -> None:
    rig.push([marked(n) for n in range(9)])
    arrivals = rig.fetch(2)
    calls = commands_of(rig, Settlement([Ending("q", "done", arrivals[0].tag)]), q=5)
    assert not {"get", "set", "smembers", "hmget", "zscore", "zrange", "zrangebyscore"} & set(calls)
    # Whether there is anything, and a bell; whether something is held of a gate.
    assert (calls["exists"], calls["hlen"]) == (2, 7)


def test_an_asked_queue_of_which_there_is_nothing_costs_one_command(rig: Rig) -> None:
    one = commands_of(rig, q=5)
    three = commands_of(rig, q=5, other=5, small=5)
    assert three - one == {"exists": 2}


def test_nothing_is_found_in_a_queue_of_which_there_is_nothing(rig: Rig) -> None:
    rig.push([marked(1)], "other")
    reply = rig.exchange(q=5, other=5, small=5)
    assert [a.queue for a in reply.arrivals] == ["other"]
    assert reply.left == {"q": 0, "other": 0, "small": 0}
    assert reply.due_ms == {}
