"""What a test sees of a broker database: lengths, unacknowledged messages, keys."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import redis

from tests.support.wait import elapse

#: kombu's priority steps other than the first have lists of their own.
SEPARATOR = "\x06\x16"
STEPS = (3, 6, 9)


class Broker:
    """One broker database.

    Arguments:
        url: a redis:// URL.
        prefix: kombu's ``global_keyprefix``.
    """

    def __init__(self, url: str, *, prefix: str = "") -> None:
        self.url = url
        self.prefix = prefix
        # redis-py's types allow for decoded replies, which these clients never give.
        self.client: Any = redis.Redis.from_url(url)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()

    def key(self, name: str) -> str:
        """Return the whole name of a key."""
        return self.prefix + name

    def length(self, queue: str) -> int:
        """Return how many messages wait in a queue, of all priorities."""
        return sum(self.client.llen(name) for name in self._lists(queue))

    def _lists(self, queue: str) -> list[str]:
        return [self.key(queue), *(f"{self.key(queue)}{SEPARATOR}{step}" for step in STEPS)]

    def has_ended(self, queue: str) -> bool:
        """Return whether nothing of a queue waits or is held: in one look, as messages move."""
        look = self.client.pipeline(transaction=True)
        for name in self._lists(queue):
            look.llen(name)
        look.zcard(self.key(f"celeriac:delayed:{queue}"))
        look.hlen(self.key("unacked"))
        return not any(look.execute())

    def payloads(self, queue: str, *, step: int = 0) -> list[str]:
        """Return the waiting messages of one priority, next one first."""
        name = f"{self.key(queue)}{SEPARATOR}{step}" if step else self.key(queue)
        return [text.decode() for text in reversed(self.client.lrange(name, 0, -1))]

    def delayed(self, queue: str) -> list[str]:
        """Return the delayed messages of a queue, the one that is due first first."""
        with self.client.pipeline() as both:  # of one moment
            both.zrange(self.key(f"celeriac:delayed:{queue}"), 0, -1)
            both.hgetall(self.key(f"celeriac:delayed_messages:{queue}"))
            members, kept = both.execute()
        assert set(members) == set(kept)
        values = [kept[member].decode().partition(":") for member in members]
        return [text[int(length) :] for length, _, text in values]

    def records(self) -> dict[str, tuple[Any, str, str]]:
        """Return the unacknowledged messages: tag -> (message, exchange, queue)."""
        raw = self.client.hgetall(self.key("unacked"))
        return {tag.decode(): tuple(json.loads(record)) for tag, record in raw.items()}

    def unacked(self, queue: str | None = None) -> int:
        """Return how many messages are unacknowledged, of one queue or of all."""
        if queue is None:
            return int(self.client.hlen(self.key("unacked")))
        return self.unacked_by_queue()[queue]

    def unacked_by_queue(self) -> Counter[str]:
        """Return the number of unacknowledged messages of each queue."""
        return Counter(queue for _, _, queue in self.records().values())

    def holds_nothing(self) -> bool:
        """Return whether no trace of an unacknowledged message is left."""
        names = ["unacked", "unacked_index", "celeriac:leases", "celeriac:origins"]
        return not self.client.exists(*(self.key(name) for name in names))

    def ledger(self, queue: str) -> dict[str, int]:
        """Return the counters of a queue, without the gauge of waiting bytes."""
        raw = self.client.hgetall(self.key(f"celeriac:ledger:{queue}"))
        return {name.decode(): int(count) for name, count in raw.items() if name != b"bytes"}

    def waiting_bytes(self, queue: str) -> int:
        """Return the bytes that wait in a queue, as its ledger has them."""
        return int(self.client.hget(self.key(f"celeriac:ledger:{queue}"), "bytes") or 0)

    def dead(self, queue: str) -> list[Any]:
        """Return the dead letters of a queue, oldest first."""
        return [json.loads(text) for text in self.payloads(f"{queue}.dead")]

    def evidence(self, queue: str) -> list[Any]:
        """Return why each of a queue's dead letters is one, oldest first."""
        return [letter["celeriac"]["dead"] for letter in self.dead(queue)]

    def charges(self) -> dict[str, tuple[int, str]]:
        """Return how often each message that is no dead letter was charged a delivery, and why."""
        messages = [message for message, _, _ in self.records().values()]
        for key in self.client.scan_iter(match=self.key("*"), _type="list"):
            texts = [] if key.endswith(b".dead") else self.client.lrange(key, 0, -1)
            # Lists of others may hold anything.
            messages += [json.loads(text) for text in texts if b'"charged":' in text]
        for name in self.names("celeriac:delayed_messages:*"):
            values = [value.decode().partition(":") for value in self.client.hvals(name)]
            messages += [json.loads(rest[int(length) :]) for length, _, rest in values]
        noted = [(one["headers"]["id"], one.get("celeriac", {})) for one in messages]
        return {
            id_: (ours["deliveries"], ours["charged"]) for id_, ours in noted if "charged" in ours
        }

    def calls_per_second(self, *, seconds: float) -> float:
        """Return how many fetches and waits the workers send to the whole server each second."""
        before = self.calls()
        elapse(seconds)
        return (self.calls() - before) / seconds

    def calls(self) -> int:
        """Return how many fetches and waits the whole server has answered."""
        stats = self.client.info("commandstats")
        names = ("cmdstat_evalsha", "cmdstat_brpop")
        return sum(int(stats[name]["calls"]) for name in names if name in stats)

    def names(self, pattern: str = "*") -> set[str]:
        """Return the names of the keys that match."""
        return {name.decode(errors="replace") for name in self.client.keys(self.key(pattern))}
