"""A key that holds something of another type: no script begins what it could not end.

Each script is called with each of its keys of another type in turn. Nothing may have changed then,
and the error names the key.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from routing.message.eta import Delay
from routing.message.gate import with_mark
from routing.redis import ledger as books
from routing.redis import settings
from routing.redis.commands import Commands
from routing.redis.letters import Move, StoredLetters
from routing.redis.scripts import SCRIPTS
from routing.redis.values import Burial, Ending, Fetch, Mark, Return, Settlement
from routing.topology.model import Topology
from tests.support.messages import numbered
from tests.support.rig import Rig
from tests.support.servers import Server

TABLE = {
    "queues": {
        "q": {},
        "newest": {"max_length": 2, "max_delayed": 1, "overflow": "dead_letter"},
        "oldest": {"max_length": 2, "max_delayed": 1, "overflow": "drop_oldest"},
        "waits": {"max_length": 2, "overflow": "block"},
        "bytes": {"max_bytes": 900, "overflow": "drop_oldest"},
        "gated": {"concurrency": 9, "rate": 5},
        "marked": {},
        "full": {},
    },
    "limits": {"t": {"concurrency": 2, "rate": 1000}},
}

HOUR = timedelta(hours=1)


class Scene:
    """A database in which every script has something to do."""

    def __init__(self, url: str) -> None:
        self.rig = rig = Rig(url)
        rig.commands = Commands(keys=rig.keys, topology=Topology.load(TABLE))
        self.client: Any = rig.client
        rig.push(numbered(9))
        rig.push(numbered(2), priority=6)
        self.held = rig.exchange(q=4).arrivals
        rig.renew(self.held[:2], started=True)
        rig.commands.bury(rig.client, "q", [Burial(self.held[3].tag, '"reason":"failed"}')])
        now = datetime.now(UTC)
        for queue in ("q", "newest", "oldest"):
            rig.delay([Delay(now + HOUR, "late", numbered(1, queue=queue)[0])], queue)
        rig.delay([Delay(now - HOUR, "due", numbered(1)[0])])
        for queue in ("newest", "oldest", "bytes"):
            rig.push(numbered(3, queue=queue), queue)
        for queue in ("gated", "marked", "full"):
            rig.push([with_mark(one, "t") for one in numbered(4, queue=queue)], queue)
        rig.exchange(gates=("0:0:1",), marked=9)
        rig.client.zadd(rig.keys.blocked("marked"), {"task:t": 0})
        self.client.set("celeriac:promised:gated", "w")
        self.client.delete("celeriac:rate:task:t")  # it would run out soon
        rig.let_leases_run_out(self.held[2:3])
        seconds, _ = self.client.time()
        beat = {"beat": seconds * 1000 + 900, "swept": seconds * 1000}
        rig.client.hset(rig.keys.reclaiming(), mapping=beat)
        self.letters = list(StoredLetters(self.client, rig.commands).newest("q"))

    def tag(self) -> str:
        return self.held[0].tag

    def all(self) -> dict[bytes, tuple[bytes, bytes]]:
        """Return everything that the database holds."""
        names = sorted(self.client.keys("*"))
        return {name: (self.client.type(name), self.contents(name)) for name in names}

    def contents(self, name: bytes) -> Any:
        read = {
            b"list": lambda: self.client.lrange(name, 0, -1),
            b"hash": lambda: self.client.hgetall(name),
            b"zset": lambda: self.client.zrange(name, 0, -1, withscores=True),
            b"string": lambda: self.client.get(name),
            b"set": lambda: self.client.smembers(name),
        }
        return read[self.client.type(name)]()


def exchange(scene: Scene) -> None:
    settlement = Settlement([Ending("q", "done", scene.tag()), Ending("oldest", "done", "gone")])
    fetch = Fetch("x:1:", (("q", 5), ("oldest", 5)), quiet=("newest",))
    scene.rig.commands.exchange(scene.client, settlement, fetch)


def pass_gate(queue: str, gate: str, *, settles: bool = False) -> Callable[[Scene], None]:
    def call(scene: Scene) -> None:
        settlement = Settlement([Ending("q", "done", scene.tag())] if settles else [])
        fetch = Fetch("x:1:", ((queue, 5),), gates=(gate,))
        scene.rig.commands.exchange(scene.client, settlement, fetch)

    return call


def requeue(mark: Mark) -> Callable[[Scene], None]:
    def call(scene: Scene) -> None:
        scene.rig.commands.requeue(scene.client, "q", [Return(scene.tag(), "1", mark, "why")])

    return call


def push(queue: str, count: int) -> Callable[[Scene], None]:
    return lambda scene: _drop(scene.rig.push(numbered(count, queue=queue), queue))


def delay(queue: str) -> Callable[[Scene], None]:
    def call(scene: Scene) -> None:
        due = datetime.now(UTC) + HOUR
        scene.rig.delay([Delay(due, "id", numbered(1, queue=queue)[0])] * 2, queue)

    return call


def revive(payload: bytes) -> Callable[[Scene], None]:
    def call(scene: Scene) -> None:
        stored_letters = StoredLetters(scene.client, scene.rig.commands)
        stored_letters.move([Move(letter, payload) for letter in scene.letters], to="oldest")

    return call


def rebase(scene: Scene) -> None:
    queue = books.QueueLedger(queue="q", waiting=1)
    books.rebase(scene.client, scene.rig.commands, queue)


def renew(scene: Scene) -> None:
    scene.rig.commands.renew(scene.client, "w@test", [(scene.tag(), "1")])


def change(scene: Scene) -> None:
    entry = settings.LoggedChange(queue="q", field="weight", value=2, before=1, by="me", at_ms=0)
    settings.change(scene.client, scene.rig.keys, "q", lambda stored, now_ms: (stored, [entry]))


def _drop(_: Any) -> None:
    """Take what a call returns."""


CALLS: dict[str, Callable[[Scene], None]] = {
    "exchange": exchange,
    "exchange past the gate of a queue": pass_gate("gated", "9:200:1", settles=True),
    "exchange past the gate of a task": pass_gate("marked", "0:0:1"),
    "exchange that parks": pass_gate("full", "0:0:1"),
    "push": push("q", 2),
    "push above a bound": push("newest", 3),
    "push where others wait": push("waits", 1),
    "push that makes room": push("oldest", 1),
    "push that makes room by bytes": push("bytes", 1),
    "delay": delay("q"),
    "delay above a bound": delay("newest"),
    "delay that makes room": delay("oldest"),
    "claim": lambda s: _drop(
        s.rig.commands.claim(s.client, "waits", "who", messages=1, kept_ms=60_000)
    ),
    "postpone": lambda s: _drop(s.rig.postpone(s.held[0], s.rig.server_ms() + 60_000)),
    "requeue": requeue(Mark.NONE),
    "requeue, charged": requeue(Mark.COUNTED),
    "requeue for later": requeue(Mark.LATER),
    "bury": lambda s: _drop(
        s.rig.commands.bury(s.client, "q", [Burial(s.tag(), '"reason":"failed"}')])
    ),
    "revive": revive(b'{"again": 1}'),
    "revive, dropping": revive(b""),
    "purge": lambda s: _drop(s.rig.purge()),
    "purge of what is blocked": lambda s: _drop(s.rig.purge("marked")),
    "ledger of what is blocked": lambda s: _drop(
        books.read(s.client, s.rig.commands, ["marked"], recount=True)
    ),
    "ledger": lambda s: _drop(books.read(s.client, s.rig.commands, ["q"], recount=True)),
    "rebase": rebase,
    "renew": renew,
    "reclaim": lambda s: _drop(s.rig.commands.reclaim(s.client)),
    "announce": lambda s: _drop(s.rig.commands.announce(s.client, "bell:2:w", ["q"], seconds=9)),
    "change": change,
}

#: It writes each result on its own, and says which of them cannot be.
APART = {"store"}

#: What a call is given and has no use for; the flag of a queue that drains may be of any type.
UNUSED = {
    "exchange": ["celeriac:bell:newest"],  # a quiet queue's is only looked at
    "push": ["celeriac:draining:q", "celeriac:pace:q", "celeriac:consumers:q"],
    "push above a bound": ["celeriac:draining:newest"],
    "push where others wait": ["celeriac:draining:waits"],
    "push that makes room": ["celeriac:draining:oldest"],
    "push that makes room by bytes": ["celeriac:draining:bytes"],
    "delay": ["celeriac:draining:q"],
    "delay above a bound": ["celeriac:delayed_count", "celeriac:draining:newest"],
    "delay that makes room": ["celeriac:draining:oldest"],
    # What is stored is read before, by a command whose error names no key.
    "change": ["celeriac:draining:q", "celeriac:settings"],
    "requeue": ["celeriac:delayed_count"],
    "requeue, charged": ["celeriac:delayed_count"],
}

GATED = ["celeriac:gated"]
OF_A_TASK = ["celeriac:gate:task:t", "celeriac:rate:task:t"]

#: What a script finds itself.
FOUND = {
    **dict.fromkeys(("exchange", "postpone", "requeue", "bury", "renew"), GATED),
    "reclaim": [*GATED, "q", "celeriac:ledger:q", "celeriac:bell:q"],
    "exchange past the gate of a queue": [
        *GATED,
        *(f"celeriac:{kind}:gated" for kind in ("gate:queue", "rate:queue", "promised", "blocked")),
    ],
    "exchange past the gate of a task": [
        *OF_A_TASK,
        "celeriac:blocked:marked",
        "celeriac:parked:6:markedtask:t",
    ],
    "exchange that parks": [*OF_A_TASK, "celeriac:parked:4:fulltask:t"],
    "purge of what is blocked": ["celeriac:parked:6:markedtask:t"],
    "ledger of what is blocked": ["celeriac:parked:6:markedtask:t"],
}


class Watching:
    """A client that notes the keys of the scripts that it runs."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.keys: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def execute_command(self, *args: Any) -> Any:
        if args[0] == "EVALSHA":
            self.keys += args[3 : 3 + args[2]]
        return self._client.execute_command(*args)


def keys_of(name: str, valkey: Server) -> list[str]:
    """Return the keys that a call touches, those that a script finds itself among them."""
    scene = Scene(valkey.fresh_url())
    with closing(scene.client):
        scene.client = scene.rig.client = Watching(scene.client)
        CALLS[name](scene)
        keys = [key for key in dict.fromkeys(scene.client.keys) if key not in UNUSED.get(name, [])]
    return keys + FOUND.get(name, [])


def test_every_script_is_among_them() -> None:
    names = {name.split()[0].rstrip(",") for name in CALLS}
    assert names | APART == set(SCRIPTS)


@pytest.mark.parametrize("name", CALLS)
def test_a_key_of_another_type_is_named_and_nothing_has_changed(valkey: Server, name: str) -> None:
    for key in keys_of(name, valkey):
        scene = Scene(valkey.fresh_url())
        with closing(scene.client):
            scene.client.delete(key)
            scene.client.sadd(key, "somebody else's")
            before = scene.all()
            with pytest.raises(redis.ResponseError, match="WRONGTYPE") as error:
                CALLS[name](scene)
            assert key in str(error.value), f"{name}: {key}"
            after = scene.all()
            # That somebody has looked is no message.
            for one in (before, after) if name == "reclaim" else ():
                one.pop(scene.rig.keys.reclaiming().encode(), None)
            assert after == before, f"{name}: {key}"
