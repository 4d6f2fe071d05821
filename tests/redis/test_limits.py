"""What one call of a script moves is bounded, in messages and in bytes, however much there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from routing.message.eta import Delay
from routing.message.gate import with_mark
from routing.message.letter import Letter
from routing.redis import ledger as books
from routing.redis.commands import Commands
from routing.redis.letters import Move, StoredLetters
from routing.redis.pieces import PUSH_BYTES
from routing.redis.values import FETCH_BYTES, Arrival, Burial, Mark
from routing.topology.model import Topology
from tests.support.messages import ids_of, task_message
from tests.support.rig import Rig
from tests.support.servers import Server

#: A big message, as a producer of pictures may send.
BIG = "x" * 300_000

#: Bytes that a call moves at most, but for one message more.
MOST_BYTES = 524_288 + 2 * len(task_message(body=BIG))

#: A queue without a limit of its own, in a table that limits tasks.
OPEN = ("0:0:1",)

#: Commands that a call runs at most: some milliseconds of a server that has nothing else to do.
MOST_COMMANDS = 5_000

TABLE = {
    "queues": {
        "q": {"max_dead": 100_000},
        "lowered": {"max_length": 10, "max_delayed": 10, "overflow": "drop_oldest", "max_dead": 10},
        "few": {"max_bytes": 1_000_000, "overflow": "drop_oldest"},
    }
}


@pytest.fixture
def rig(valkey: Server) -> Any:
    rig = Rig(valkey.fresh_url())
    rig.commands = Commands(keys=rig.keys, topology=Topology.load(TABLE))
    yield rig
    rig.client.close()


@dataclass
class Calls:
    """The scripts that were run meanwhile: how many, and the most commands and bytes of one."""

    count: int = 0
    commands: int = 0
    bytes: int = 0


def watch(rig: Rig, call: Callable[[], Any]) -> Calls:
    """Run something, and return what its scripts did, as a monitor sees it."""
    calls = Calls()
    with rig.client.monitor() as monitor:
        call()
        rig.client.ping()
        commands = size = 0
        for seen in monitor.listen():
            name = seen["command"].split(" ", 1)[0].upper()
            if name == "PING":
                break
            if seen["client_type"] == "lua":
                commands, size = commands + 1, size + len(seen["command"])
            else:
                commands = size = 0
                calls.count += name == "EVALSHA"
            calls.commands = max(calls.commands, commands)
            calls.bytes = max(calls.bytes, size)
    return calls


def fill(rig: Rig, count: int, *, body: str | None = None, queue: str = "q") -> None:
    for n in range(count):
        rig.push([task_message(message_id=str(n), body=body, queue=queue)], queue)


def hold(rig: Rig, count: int, body: str | None) -> list[Arrival]:
    fill(rig, count, body=body)
    return rig.fetch(2000)


def due(rig: Rig, count: int, *, body: str | None = None, queue: str = "q", ago: int = 1) -> None:
    moment = datetime.now(UTC) - timedelta(hours=ago)
    for n in range(count):
        rig.delay([Delay(moment, str(n), task_message(message_id=str(n), body=body))], queue)


def bury(rig: Rig, arrivals: list[Arrival]) -> None:
    burials = [Burial(a.tag, '"reason":"failed"}') for a in arrivals]
    rig.commands.bury(rig.client, "q", burials)


def reclaim(rig: Rig) -> None:
    while rig.reclaim() > 0:
        pass


def move(rig: Rig, payload: Callable[[Letter], bytes]) -> None:
    stored_letters = StoredLetters(rig.client, rig.commands)
    walk = stored_letters.walk("q", lambda _: True)
    while letters := walk.next(200):
        walk.taken(len(stored_letters.move([Move(one, payload(one)) for one in letters], to="q")))


@pytest.mark.parametrize(("count", "body"), [(30, BIG), (1200, None)], ids=["big", "many"])
@pytest.mark.parametrize(
    "act",
    ["promote", "requeue", "later", "reclaim", "bury", "replay", "drop letters", "fetch"],
)
def test_what_moves_in_one_call_is_bounded_and_all_of_it_moves(
    rig: Rig, act: str, count: int, body: str | None
) -> None:
    def promote() -> None:
        while rig.delayed():
            rig.exchange(q=0)

    expected = [str(n) for n in range(count)]
    ready = rig.ready_ids
    held = [] if act in ("promote", "fetch") else hold(rig, count, body)
    dead = lambda: ids_of(rig.broker.payloads("q.dead"))  # noqa: E731
    ways: dict[str, tuple[Callable[[], Any], Callable[[], list[str]]]] = {
        "promote": (promote, ready),
        "requeue": (lambda: rig.requeue(held), ready),
        "later": (lambda: rig.mark(held, Mark.LATER), lambda: ids_of(rig.broker.delayed("q"))),
        "reclaim": (lambda: reclaim(rig), ready),
        "bury": (lambda: bury(rig, held), dead),
        "replay": (lambda: move(rig, lambda letter: letter.payload), ready),
        "drop letters": (lambda: move(rig, lambda _: b""), lambda: expected[len(dead()) :]),
        "fetch": (lambda: rig.fetch(2000), lambda: held_ids(rig)),
    }
    if act == "promote":
        due(rig, count, body=body)
    elif act == "fetch":
        fill(rig, count, body=body)
    elif act == "reclaim":
        rig.let_leases_run_out(held)
    elif act in ("replay", "drop letters"):
        bury(rig, held)
    run, moved = ways[act]
    calls = watch(rig, run)
    found = moved()
    assert (sorted(found, key=int) if act in ("fetch", "later") else found) == expected
    # A letter is named by its payload, and replaced by another.
    most = 3 * MOST_BYTES if "letter" in act or act == "replay" else 2 * MOST_BYTES
    assert calls.bytes <= (FETCH_BYTES * 2 if act == "fetch" else most)
    assert calls.commands <= MOST_COMMANDS
    assert rig.broker.holds_nothing() or act == "fetch"


def held_ids(rig: Rig) -> list[str]:
    return [message["headers"]["id"] for message, _, _ in rig.broker.records().values()]


def test_a_bound_that_was_lowered_is_reached_in_bounded_calls(rig: Rig) -> None:
    for n in range(4):
        texts = [task_message(message_id=str(1000 * n + k)) for k in range(1000)]
        rig.client.lpush("lowered", *texts)
    calls = watch(rig, lambda: rig.push([task_message(message_id="new")], "lowered"))
    assert rig.ready_ids("lowered") == [*(str(n) for n in range(3991, 4000)), "new"]
    assert calls.count > 4
    assert calls.commands <= MOST_COMMANDS


def test_a_bound_by_bytes_that_big_messages_reach_is_kept_in_bounded_calls(rig: Rig) -> None:
    rig.push([task_message(message_id="small", body="x" * 400)], "few")
    for n in range(1500):
        rig.client.lpush("few", task_message(message_id=str(n), body="y" * 10_000))
    rig.client.hset(rig.keys.ledger("few"), "bytes", 10**9)
    calls = watch(rig, lambda: rig.push([task_message(message_id="new", body=BIG)], "few"))
    assert rig.ready_ids("few") == ["new"]
    assert calls.commands <= MOST_COMMANDS
    assert calls.bytes <= 4 * MOST_BYTES


def test_a_bound_of_delayed_messages_that_was_lowered_is_reached_too(rig: Rig) -> None:
    plain = Commands(keys=rig.keys, topology=Topology.load({"queues": {"lowered": {}}}))
    lowered, rig.commands = rig.commands, plain
    due(rig, 1200, queue="lowered", ago=-1)
    rig.commands = lowered
    calls = watch(rig, lambda: due(rig, 1, queue="lowered", ago=-2))
    assert rig.delayed("lowered") == 10
    assert calls.count > 2
    assert calls.commands <= MOST_COMMANDS


def test_very_many_are_purged_in_bounded_calls(rig: Rig) -> None:
    fill(rig, 1200)
    due(rig, 1200, ago=-1)
    calls = watch(rig, rig.purge)
    assert rig.broker.length("q") + rig.delayed() == 0
    assert rig.broker.ledger("q")["purged"] == 2400
    assert rig.broker.waiting_bytes("q") == 0
    assert calls.count > 4
    assert calls.commands < 100


@pytest.mark.parametrize("queue", ["q", "small", "waits", "newest"])
def test_very_big_pushes_go_in_several_calls_and_end_as_one_would(rig: Rig, queue: str) -> None:
    bounds: dict[str, Any] = {
        "small": {"max_length": 16},
        "waits": {"max_length": 16, "overflow": "block"},
        "newest": {"max_length": 16, "overflow": "drop_oldest"},
    }
    table = {"queues": {"q": {}, **bounds}}
    rig.commands = Commands(keys=rig.keys, topology=Topology.load(table))
    texts = [task_message(message_id=str(n), body=BIG) for n in range(30)]
    pushed = []
    calls = watch(rig, lambda: pushed.append(rig.push(texts, queue)))
    kept = {"small": texts[:16], "waits": texts[:16], "newest": texts[-16:]}.get(queue, texts)
    assert rig.ready_ids(queue) == ids_of(kept)
    assert pushed[0].accepted == (16 if queue in ("small", "waits") else 30)
    assert pushed[0].dropped == (14 if queue == "newest" else 0)
    assert rig.broker.ledger(queue).get("refused", 0) == (14 if queue == "small" else 0)
    assert calls.bytes <= 2 * PUSH_BYTES


# -- what is blocked ---------------------------------------------------------------------------


def gated(rig: Rig, count: int, *, keys: int, body: str | None = None) -> None:
    """Push messages of so many keys, each of which may run one at a time."""
    limits = {"a": {"concurrency": 1, "key": "k"}}
    rig.commands = Commands(
        keys=rig.keys, topology=Topology.load({"queues": {"q": {}}, "limits": limits})
    )
    for n in range(count):
        text = task_message(message_id=str(n), body=body)
        rig.push([with_mark(text, f"a|{n % keys}")])


@pytest.mark.parametrize(
    ("count", "keys", "body"), [(30, 1, BIG), (900, 1, None), (900, 450, None)]
)
def test_what_is_parked_and_starts_in_one_call_is_bounded(
    rig: Rig, count: int, keys: int, body: str | None
) -> None:
    gated(rig, count, keys=keys, body=body)
    held: list[Arrival] = []

    def park() -> None:
        left = 1
        while left:
            reply = rig.exchange(gates=OPEN, q=1000)
            left = reply.left["q"]
            held.extend(reply.arrivals)

    calls = watch(rig, park)
    assert len(held) == keys
    assert rig.broker.ledger("q")["blocked"] == count - keys
    more = watch(rig, lambda: (rig.settle(held), held.clear(), park()))
    assert len(held) == keys
    for one in (calls, more):
        assert one.commands <= MOST_COMMANDS
        assert one.bytes <= 2 * MOST_BYTES


def test_what_is_blocked_is_purged_in_bounded_calls(rig: Rig) -> None:
    gated(rig, 900, keys=400)
    while rig.exchange(gates=OPEN, q=1000).left["q"]:
        pass
    blocked = rig.broker.ledger("q")["blocked"]
    assert blocked == 500
    due(rig, 600, ago=-1)
    calls = watch(rig, rig.purge)
    assert calls.commands <= MOST_COMMANDS
    assert rig.broker.ledger("q")["purged"] == 1100
    assert not rig.client.keys("*parked*") + rig.client.keys("*blocked*")


def test_parked_messages_of_very_many_gates_are_not_counted_again(rig: Rig) -> None:
    gated(rig, 4, keys=1)
    rig.exchange(gates=OPEN, q=1000)
    names = {f"task:a|{n}": 10**15 for n in range(books.PARKED_AT_MOST // 4 + 1)}
    assert books.read(rig.client, rig.commands, recount=True)["q"].parked == 3
    rig.client.zadd(rig.keys.blocked("q"), names)
    (one,) = books.read(rig.client, rig.commands, recount=True).queues
    assert (one.parked, one.misparked) == (None, 0)


# -- dead letters ------------------------------------------------------------------------------


def put_letters(rig: Rig, count: int, *, at: str = '"at":1,') -> None:
    texts = [
        task_message(message_id=str(n))[:-1] + f',"celeriac":{{"dead":{{{at}"reason":"failed"}}}}}}'
        for n in range(count)
    ]
    rig.client.lpush(rig.keys.dead("q"), *texts)


def server_usec(rig: Rig, call: Callable[[], Any]) -> float:
    """Return what a script cost the server each time, in the mean."""
    rig.client.config_resetstat()
    call()
    stats: Any = rig.client.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec_per_call"])


def test_the_newest_of_very_many_letters_cost_what_those_of_few_cost(rig: Rig) -> None:
    stored_letters = StoredLetters(rig.client, rig.commands)

    def purge_newest(count: int) -> float:
        rig.client.delete(rig.keys.dead("q"))
        for _ in range(count // 1000):
            put_letters(rig, 1000)
        walk = stored_letters.walk("q", lambda one: one.index < -count + 150)
        letters = walk.next(150)
        assert len(letters) == 150
        moves = [Move(one) for one in letters]
        usec = server_usec(rig, lambda: stored_letters.move(moves, to="q"))
        assert stored_letters.count("q") == count - 150
        return usec

    few = min(purge_newest(1000) for _ in range(3))
    many = min(purge_newest(40_000) for _ in range(3))
    assert many < 10 * few


def test_letters_anywhere_are_taken_out_and_the_others_keep_their_order(rig: Rig) -> None:
    put_letters(rig, 3000)
    stored_letters = StoredLetters(rig.client, rig.commands)
    walk = stored_letters.walk("q", lambda one: int(one.id) % 7 == 3)
    while letters := walk.next(200):
        walk.taken(len(stored_letters.move([Move(one) for one in letters], to="q")))
    left = [str(n) for n in range(3000) if n % 7 != 3]
    assert ids_of(rig.broker.payloads("q.dead")) == left


def test_letters_that_have_moved_up_meanwhile_are_found(rig: Rig) -> None:
    put_letters(rig, 500)
    stored_letters = StoredLetters(rig.client, rig.commands)
    letters = stored_letters.walk("q", lambda one: int(one.id) in (100, 300, 499)).next(3)
    rig.client.ltrim(rig.keys.dead("q"), 0, -102)
    put_letters(rig, 1)
    moved = stored_letters.move([Move(one) for one in letters], to="q")
    assert [one.id for one in moved] == ["300", "499"]
    assert stored_letters.count("q") == 500 - 101 + 1 - 2


@pytest.mark.parametrize("strangers", [1, 5, 40, 700])
def test_what_does_not_say_when_it_died_ages_as_its_neighbour(rig: Rig, strangers: int) -> None:
    rig.client.lpush(rig.keys.dead("q"), *(["a stranger"] * strangers))
    put_letters(rig, 20)
    assert rig.commands.bury(rig.client, "q", []).trimmed == strangers + 20


def test_strangers_between_old_and_young_letters_age_with_the_old_ones(rig: Rig) -> None:
    rig.client.lpush(rig.keys.dead("q"), *(["a stranger"] * 100))
    put_letters(rig, 40)
    put_letters(rig, 300, at=f'"at":{rig.server_ms()},')
    assert rig.commands.bury(rig.client, "q", []).trimmed == 140


def test_a_stranger_is_kept_as_long_as_its_neighbour(rig: Rig) -> None:
    rig.client.lpush(rig.keys.dead("q"), *(["x" * 900_000] * 9))
    put_letters(rig, 20, at=f'"at":{rig.server_ms()},')
    rig.client.lpush(rig.keys.dead("q"), "the newest")
    assert rig.commands.bury(rig.client, "q", []).trimmed == 0
    assert rig.broker.length("q.dead") == 30


def test_a_queue_of_strangers_alone_does_not_age(rig: Rig) -> None:
    rig.client.lpush(rig.keys.dead("q"), *(["a stranger"] * 300))
    assert rig.commands.bury(rig.client, "q", []).trimmed == 0


def test_very_many_letters_are_trimmed_in_bounded_calls(rig: Rig) -> None:
    put_letters(rig, 2500)
    rig.client.rename(rig.keys.dead("q"), rig.keys.dead("lowered"))
    calls = watch(rig, lambda: rig.commands.bury(rig.client, "lowered", []))
    assert rig.broker.length("lowered.dead") == 0, "they are too old besides"
    assert calls.commands <= MOST_COMMANDS
