"""What a fetcher has out: nothing, an exchange, or a wait for a bell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from routing.redis.values import Fetch, Settlement


@dataclass(frozen=True, slots=True)
class Idle:
    """No command is out."""

    coming: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchanging:
    """An exchange waits for its reply: what it asks for, what it settles, whether it asks all."""

    fetch: Fetch
    settlement: Settlement
    looks_at_all: bool

    @property
    def coming(self) -> tuple[str, ...]:
        """The queues that are asked."""
        return tuple(queue for queue, _ in self.fetch.asked)


@dataclass(frozen=True, slots=True)
class Listening:
    """A blocking pop waits for a bell of these queues."""

    queues: frozenset[str]
    coming: tuple[str, ...] = ()


FetchState: TypeAlias = Idle | Exchanging | Listening

IDLE = Idle()
