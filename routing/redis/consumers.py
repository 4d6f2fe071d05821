"""Who consumes which queue: live workers say so every few seconds; who does not is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from routing.redis.keys import Keys


class Consumer(NamedTuple):
    """A worker, as it announces itself."""

    bell: str
    slots: int
    hostname: str

    def __str__(self) -> str:
        return f"{self.bell}:{self.slots}:{self.hostname}"

    @classmethod
    def parse(cls, text: str) -> Consumer:
        """Return the worker that a text means."""
        bell, slots, hostname = text.split(":", 2)
        return cls(bell, int(slots), hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consuming:
    """A live worker, with the queues that it consumes."""

    consumer: Consumer
    queues: frozenset[str]


def read(client: redis.Redis, keys: Keys, queues: Iterable[str]) -> list[Consuming]:
    """Return the live workers that consume any of these queues."""
    any_client: Any = client
    seconds, micros = any_client.time()
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    names = list(queues)
    pipeline = any_client.pipeline(transaction=False)
    for queue in names:
        pipeline.zrangebyscore(keys.consumers(queue), now_ms, "+inf")
    found: dict[str, set[str]] = {}
    for queue, members in zip(names, pipeline.execute(), strict=True):
        for member in members:
            found.setdefault(member.decode(), set()).add(queue)
    return [
        Consuming(consumer=Consumer.parse(text), queues=frozenset(consumed))
        for text, consumed in sorted(found.items())
    ]
