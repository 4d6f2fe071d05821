"""The commands over one broker database, and a view of what they left there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import redis

from routing.message.eta import Delay
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.values import Arrival, Ending, Exchanged, Fetch, Mark, Pushed, Return, Settlement
from routing.topology.model import Topology
from tests.support.broker import Broker
from tests.support.messages import id_of, ids_of
from tests.support.wait import eventually

LEASE_SECONDS = 60.0

TABLE: Mapping[str, Any] = {
    "queues": {
        "q": {},
        "other": {},
        "third": {},
        "small": {"max_length": 3},
        "few": {"max_delayed": 2},
        "few-oldest": {"max_delayed": 2, "overflow": "drop_oldest"},
        "few-newest": {"max_delayed": 2, "overflow": "drop_newest"},
        "few-dead": {"max_delayed": 2, "overflow": "dead_letter"},
    },
    "lease_seconds": LEASE_SECONDS,
}

NOTHING = Settlement([])


class Rig:
    """The commands over one broker database, and a view of what they left there."""

    def __init__(self, url: str, *, prefix: str = "", table: Mapping[str, Any] = TABLE) -> None:
        self.broker = Broker(url, prefix=prefix)
        self.keys = Keys(prefix=prefix)
        self.commands = Commands(keys=self.keys, topology=Topology.load(table))
        self.client: redis.Redis = self.broker.client
        self._calls = count(1)

    def push(self, payloads: Sequence[str | bytes], queue: str = "q", **options: Any) -> Pushed:
        return self.commands.push(self.client, queue, payloads, **options)

    def delay(self, delays: Sequence[Delay], queue: str = "q", **options: Any) -> Pushed:
        return self.commands.delay(self.client, queue, delays, **options)

    def delayed(self, queue: str = "q") -> int:
        """Return how many messages are delayed."""
        count: int = self.broker.client.zcard(self.keys.delayed(queue))
        assert count == self.broker.client.hlen(self.keys.delayed_payloads(queue))
        return count

    def postpone(self, arrival: Arrival, due_ms: int) -> bool:
        return self.commands.postpone(
            self.client,
            arrival.queue,
            arrival.tag,
            message_id=id_of(arrival.payload),
            due_ms=due_ms,
        )

    def server_ms(self) -> int:
        """Return the server's clock."""
        seconds, micros = self.broker.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def let_pass(self, seconds: float) -> None:
        """Wait until the server's clock has gone on for so long."""
        until = self.server_ms() + seconds * 1000
        eventually(lambda: self.server_ms() > until)

    def exchange(
        self, settlement: Settlement = NOTHING, gates: tuple[str, ...] = (), **asked: int
    ) -> Exchanged:
        """Settle, and fetch as many as asked of each queue in this order."""
        fetch = Fetch(f"w:{next(self._calls)}:", tuple(asked.items()), gates=gates)
        return self.commands.exchange(self.client, settlement, fetch)

    def fetch(self, credit: int = 1000, queue: str = "q") -> list[Arrival]:
        """Fetch as many of a queue, in several calls when they are many or big."""
        arrivals: list[Arrival] = []
        while more := self.exchange(NOTHING, **{queue: credit - len(arrivals)}).arrivals:
            arrivals += more
        return arrivals

    def settle(self, arrivals: Sequence[Arrival], ending: str = "done") -> None:
        endings = [Ending(arrival.queue, ending, arrival.tag) for arrival in arrivals]
        self.exchange(Settlement(endings))

    def requeue(self, arrivals: Sequence[Arrival], *, charge: bool = False) -> int:
        mark = Mark.COUNTED if charge else Mark.NONE
        return self.mark(arrivals, mark)

    def mark(self, arrivals: Sequence[Arrival], mark: Mark, evidence: str = "") -> int:
        """Give back with a mark."""
        returns = [Return(a.tag, id_of(a.payload), mark, evidence) for a in arrivals]
        return self.commands.requeue(self.client, arrivals[0].queue, returns)

    def renew(
        self, arrivals: Sequence[Arrival], *, started: bool = False, company: int = 1
    ) -> list[str]:
        """Renew leases; returns the tags that are gone.

        Arguments:
            started: whether they run.
            company: how many messages the run of each has.
        """
        held = [(arrival.tag, str(company) if started else "") for arrival in arrivals]
        return self.commands.renew(self.client, "w@test", held)

    def let_leases_run_out(self, arrivals: Sequence[Arrival]) -> None:
        """Set leases to a moment ago."""
        expiry = int(self.broker.client.time()[0] * 1000 - 1000)
        leases = self.keys.records()[2]
        self.broker.client.zadd(leases, {arrival.tag: expiry for arrival in arrivals})

    def reclaim(self, commands: Commands | None = None) -> int:
        """Take what has run out, as a worker does that has looked at leases all the time."""
        now = int(self.broker.client.time()[0] * 1000)
        beat = {"beat": now, "not_before": 0, "swept": now}
        self.broker.client.hset(self.keys.reclaiming(), mapping=beat)
        return (commands or self.commands).reclaim(self.client)

    def purge(self, queue: str = "q") -> int:
        return self.commands.purge(self.client, queue)

    def ready_ids(self, queue: str = "q") -> list[str]:
        return ids_of(self.broker.payloads(queue))

    def bells(self, queue: str = "q") -> int:
        length: int = self.broker.client.llen(self.keys.bell(queue))
        return length

    def take_bell(self, queue: str = "q") -> None:
        assert self.broker.client.rpop(self.keys.bell(queue)) == b"1"

    def deliveries(self) -> dict[str, int]:
        """Return how often each message was charged a delivery, where it was."""
        return {name: count for name, (count, _) in self.broker.charges().items()}
