"""Looks at the run from outside, once a second: ledger, memory, results."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.life.plan import QUEUES
from benchmarks.life.records import Sent, read_sent
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.ledger import read
from routing.topology.model import Topology

#: Messages at the front of each queue that may have been charged just now.
CHARGED_AT_MOST = 20

FINAL = ("SUCCESS", "FAILURE", "REVOKED")

#: A result is first looked for so long after its message was sent: nearly all are there then.
LOOK_AFTER_SECONDS = 45.0
LOOK_AT_MOST = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was seen at one moment: messages by place, and the memory of every process.

    ``memory``: place of a process in the fleet -> its id and resident bytes.
    """

    at: float
    places: Mapping[str, int]
    memory: Mapping[str, tuple[int, int]]

    @property
    def backlog(self) -> int:
        """Return how many messages have not ended."""
        return sum(self.places.values())


class Broker:
    """The broker, as `celery queues` sees it.

    ``charges``: id of a message and what it was charged -> when that was seen.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        table = Topology.load({"queues": {queue: {} for queue in QUEUES}})
        self._keys = Keys()
        self.charges: dict[tuple[str, str], float] = {}
        self._commands = Commands(keys=self._keys, topology=table)

    def places(self) -> dict[str, int] | None:
        """Return how many messages are where; None when the broker does not say."""
        with contextlib.suppress(redis.RedisError):
            queues = read(self.client, self._commands).queues
            waiting = {f"{queue.queue}_waits": queue.waiting for queue in queues}
            return {
                **waiting,
                "delayed": sum(queue.delayed for queue in queues),
                "unacked": sum(queue.unacked for queue in queues),
            }
        return None

    def note_charges(self) -> None:
        """Note which messages are charged a delivery right now."""
        with contextlib.suppress(redis.RedisError):
            now = time.monotonic()
            held: Any = self.client.hvals(self._keys.records()[0])
            # What was charged has gone back to the front of its queue, the end of its list.
            waiting: Any = [
                text for queue in QUEUES for text in self.client.lrange(queue, -CHARGED_AT_MOST, -1)
            ]
            for text in [*(json.loads(record)[0] for record in held), *map(json.loads, waiting)]:
                ours = text.get("celeriac", {})
                if why := ours.get("charged"):
                    charge = f"{ours['deliveries']} {why}"
                    self.charges.setdefault((text["headers"]["id"], charge), now)

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return the ledger of each queue, with its records counted."""
        ledger = read(self.client, self._commands, recount=True)
        return {queue.queue: queue.as_json() for queue in ledger.queues}

    def dead_numbers(self) -> Counter[int]:
        """Return the messages among the dead letters."""
        return Counter(
            number
            for queue in QUEUES
            for text in self._all(self._keys.dead(queue))
            for number in [number_of(text)]
        )

    def dead_reasons(self) -> dict[int, str]:
        """Return why each message among the dead letters is there."""
        found = {}
        for queue in QUEUES:
            for text in self._all(self._keys.dead(queue)):
                why = json.loads(text).get("celeriac", {}).get("dead", {})
                said = f"{why.get('reason')}: {why.get('exception')}: {why.get('message')}"
                found[number_of(text)] = said[:300]
        return found

    def whereabouts(self, ids: Collection[str]) -> dict[str, str]:
        """Return for each id in which places of the broker its message is."""
        found: dict[str, list[str]] = {one: [] for one in ids}
        for place, text in self._texts():
            for one in ids:
                if one.encode() in text:
                    found[one].append(place)
        return {one: ", ".join(places) or "nowhere" for one, places in found.items()}

    def _texts(self) -> Iterator[tuple[str, bytes]]:
        for queue in QUEUES:
            for name in self._keys.ready_lists(queue):
                yield from ((f"waiting in {queue}", text) for text in self._all(name))
            yield from ((f"dead in {queue}", text) for text in self._all(self._keys.dead(queue)))
            delayed: Any = self.client.hvals(self._keys.delayed_payloads(queue))
            yield from ((f"delayed in {queue}", text) for text in delayed)
        unacked: Any = self.client.hvals(self._keys.records()[0])
        yield from (("unacked", text) for text in unacked)

    def _all(self, key: str) -> list[bytes]:
        found: Any = self.client.lrange(key, 0, -1)
        return list(found)


def number_of(text: bytes) -> int:
    """Return the number of a message: its first argument; -1 when it is none of ours."""
    try:
        return int(json.loads(base64.b64decode(json.loads(text)["body"]))[0][0])
    except (ValueError, KeyError, TypeError, IndexError):
        return -1


@dataclass(slots=True)
class Results:
    """Looks for the result of every message that was sent.

    ``states`` has the final state of each message by its number; what is not there has not come.
    """

    client: redis.Redis
    directory: Path
    states: dict[int, str] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    refused: int = 0
    _pending: deque[Sent] = field(default_factory=deque)
    _offset: int = 0

    def look(self, *, at_all: bool = False) -> None:
        """Look for results that should be there by now, or for all that have not come."""
        self._read_sent()
        before = time.monotonic() - (0 if at_all else LOOK_AFTER_SECONDS)
        chosen = []
        while self._pending and self._pending[0].at <= before:
            chosen.append(self._pending.popleft())
            if len(chosen) == LOOK_AT_MOST and not at_all:
                break
        missing = [one for batch in _chunks(chosen) for one in self._missing(batch)]
        # Behind the others, so that what is late keeps none of them from being looked for.
        self._pending.extend(missing)

    def stored(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the state that is stored for each of some messages now."""
        keys = {one: f"celery-task-meta-{one}" for one in ids}
        found = {one: self.client.get(key) for one, key in keys.items()}
        return {one: json.loads(raw)["status"] if raw else "none" for one, raw in found.items()}

    def _read_sent(self) -> None:
        found, self._offset = read_sent(self.directory, self._offset)
        for one in found:
            if one.is_accepted:
                self.sent.append(one)
                self._pending.append(one)
            else:
                self.refused += 1

    def _missing(self, chosen: list[Sent]) -> Iterator[Sent]:
        found: Any = self.client.mget([f"celery-task-meta-{one.id}" for one in chosen])
        for one, raw in zip(chosen, found, strict=True):
            state = json.loads(raw)["status"] if raw else None
            if state in FINAL:
                self.states[one.number] = state
            else:
                yield one


def _chunks(all_: list[Sent]) -> Iterable[list[Sent]]:
    return (all_[n : n + LOOK_AT_MOST] for n in range(0, len(all_), LOOK_AT_MOST))
