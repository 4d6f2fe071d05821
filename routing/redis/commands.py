"""The commands of the engine as Python calls: arguments in, values out, one round trip each.

Everything is built for one broker database: the key names, the queue table's bounds and the lease.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import redis

from routing.message.eta import Delay
from routing.redis.bounds import Bounds, Terms, bounds_of
from routing.redis.keys import Keys
from routing.redis.pieces import push_pieces
from routing.redis.scripts import run_script
from routing.redis.values import (
    FETCH_BYTES,
    Arrival,
    Burial,
    Buried,
    Exchanged,
    Fetch,
    Pushed,
    Return,
    Settlement,
)
from routing.topology.limits import NO_GATE
from routing.topology.model import Topology

#: A queue's bell that nobody hears falls silent after an hour, as in the scripts.
BELL_MS = 3_600_000

#: A bell that one listener has, sooner.
OWN_BELL_MS = 60_000

#: Most messages of one call that requeues.
REQUEUE_AT_MOST = 400

#: Most leases in one call that renews: 3,900 kept the server busy for 10 ms.
RENEW_AT_MOST = 1000

#: Most messages that one call takes from workers that have gone.
RECLAIM_AT_MOST = 300

#: Most messages that one call buries: with the longest evidence that is some 3 MB.
BURY_AT_MOST = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Builds and runs the calls for one broker database."""

    keys: Keys
    topology: Topology

    @property
    def _lease_ms(self) -> int:
        return int(self.topology.lease_seconds * 1000)

    def _ledger(self, queue: str) -> str:
        return self.keys.ledger(queue) if queue in self.topology.queues else ""

    def _delayed(self, queue: str) -> tuple[str, str]:
        return self.keys.delayed(queue), self.keys.delayed_payloads(queue)

    def push(
        self,
        client: redis.Redis,
        queue: str,
        payloads: Sequence[str | bytes],
        *,
        priority: int = 0,
        terms: Terms = "",
        who: str = "",
    ) -> Pushed:
        """Append messages to a queue, as far as its bounds and its policy allow.

        Arguments:
            client: a client that adds no key prefix.
            payloads: complete kombu messages as JSON, oldest first; what is too much for one call
                goes in several. Without any, nothing is changed: the reply says how much waits.
            priority: kombu's priority step, 0 is taken first.
            terms: whether the bounds hold for these messages.
            who: who pushes, where room may be claimed.
        """
        bounds = bounds_of(self.topology, queue)
        keys = _push_keys(self.keys, queue, priority, bounds, self._ledger(queue))

        def push_some(some: Sequence[str | bytes], terms: Terms) -> Pushed:
            args = [*bounds.args[:3], terms, *bounds.args[3:], who, *some]
            reply = run_script(client, "push", keys, args)
            accepted, length, size_bytes, dropped, age_ms = (int(number) for number in reply[:5])
            drains, pace_us, consumers = [*reply[5:], 0, None][:3]
            return Pushed(
                accepted,
                length,
                bounds.max_length,
                size_bytes,
                dropped,
                age_ms,
                drains=bool(drains),
                pace_ms=pace_us / 1000,
                consumers=consumers,
            )

        return push_pieces(push_some, payloads, terms, bounds.args[2])

    def delay(
        self,
        client: redis.Redis,
        queue: str,
        delays: Sequence[Delay],
        *,
        priority: int = 0,
        terms: Terms = "",
        who: str = "",
    ) -> Pushed:
        """Keep messages until they are due, as far as max_delayed and the queue's policy allow.

        The arguments are those of `push`. In the reply, `length` is the number of messages that
        were delayed before, and `limit` is max_delayed.
        """
        bounds = bounds_of(self.topology, queue, delayed=True)
        limit, _, policy, *dead_letters = bounds.args
        keys = [*self._delayed(queue), self.keys.delayed_count(), self.keys.bell(queue)]
        keys += [self._ledger(queue), self.keys.ready(queue, priority)]
        keys += [self.keys.dropped(queue), self.keys.dead(queue)]
        keys += [self.keys.claim(queue, delayed=True), self.keys.draining(queue)]

        def delay_some(some: Sequence[Delay], terms: Terms) -> Pushed:
            entries = [value for d in some for value in (d.wait_ms, d.message_id, d.payload)]
            args = [limit, policy, terms, *dead_letters, who, *entries]
            reply = run_script(client, "delay", keys, args)
            accepted, length, dropped = (int(number) for number in reply[:3])
            return Pushed(accepted, length, limit, dropped=dropped, drains=bool(reply[3]))

        return push_pieces(delay_some, delays, terms, policy)

    def claim(
        self,
        client: redis.Redis,
        queue: str,
        who: str,
        *,
        messages: int,
        size_bytes: int = 0,
        kept_ms: int,
        delayed: bool = False,
    ) -> bool:
        """Keep room in a full queue for messages that must get in together, whatever comes free.

        Without messages it is let go, and nobody else may claim any for that time. Returns False
        when somebody else's is kept already.
        """
        keys = [self.keys.claim(queue, delayed=delayed)]
        return bool(run_script(client, "claim", keys, [who, messages, size_bytes, kept_ms]))

    def postpone(
        self, client: redis.Redis, queue: str, tag: str, *, message_id: str, due_ms: int
    ) -> bool:
        """Put a fetched message among the delayed ones; False when it is no longer held."""
        keys = [*self.keys.records(), *self._delayed(queue), self.keys.delayed_count()]
        keys += [self._ledger(queue), self.keys.bell(queue)]
        return bool(run_script(client, "postpone", keys, [tag, message_id, due_ms]))

    def with_dropped(self, client: redis.Redis, queues: Sequence[str]) -> list[str]:
        """Return those of these queues whose dropped messages wait for a final state."""
        pipeline = client.pipeline(transaction=False)
        for queue in queues:
            pipeline.llen(self.keys.dropped(queue))
        lengths = pipeline.execute()
        return [queue for queue, length in zip(queues, lengths, strict=True) if length]

    def exchange_call(self, settlement: Settlement, fetch: Fetch) -> tuple[list[str], list[Any]]:
        """Return keys and arguments of an exchange."""
        groups = settlement.groups()
        keys = self.keys.records()
        args: list[Any] = [len(groups), len(fetch.asked), fetch.prefix]
        args += [self._lease_ms, FETCH_BYTES, fetch.places, len(fetch.quiet)]
        args.append((fetch.limits or self.topology.limits_text) if fetch.gates else "")
        for (queue, ending), tags in groups.items():
            keys.append(self._ledger(queue))
            args += [ending, len(tags), *tags]
        keys += [self.keys.bell(queue) for queue in fetch.quiet]
        allowances = fetch.allowances or (FETCH_BYTES,) * len(fetch.asked)
        slots = fetch.per_slot or (0,) * len(fetch.asked)
        gates = fetch.gates or (NO_GATE,) * len(fetch.asked)
        asked = zip(fetch.asked, slots, allowances, gates, strict=True)
        for (queue, credit), per_slot, room_bytes, gate in asked:
            lists = self.keys.ready_lists(queue)
            keys += [self._ledger(queue), self.keys.bell(queue), *self._delayed(queue), *lists]
            args += [json.dumps(queue), credit, per_slot, room_bytes, len(lists), gate]
        return keys, args

    @staticmethod
    def exchange_reply(fetch: Fetch, reply: Sequence[Any]) -> Exchanged:
        """Read the reply to an exchange."""
        server_ms, rung, *per_queue = reply
        left: dict[str, int] = {}
        due_ms: dict[str, int] = {}
        arrivals: list[Arrival] = []
        for position, ((queue, _), (remaining, due, *payloads)) in enumerate(
            zip(fetch.asked, per_queue, strict=True), start=1
        ):
            left[queue] = int(remaining)
            if due:
                due_ms[queue] = int(due)
            tag = f"{fetch.prefix}{position}:"
            arrivals += [
                Arrival(f"{tag}{n}", queue, payload) for n, payload in enumerate(payloads, start=1)
            ]
        heard = [fetch.quiet[number - 1] for number in rung]
        return Exchanged(int(server_ms), left, arrivals, due_ms, heard)

    def exchange(self, client: redis.Redis, settlement: Settlement, fetch: Fetch) -> Exchanged:
        """Settle and fetch in one round trip."""
        return self.exchange_reply(
            fetch, run_script(client, "exchange", *self.exchange_call(settlement, fetch))
        )

    def requeue(self, client: redis.Redis, queue: str, returns: Sequence[Return]) -> int:
        """Return messages to the front of their queue, given in fetch order; returns how many."""
        keys = [*self.keys.records(), self.keys.bell(queue), self._ledger(queue)]
        keys += [*self._delayed(queue), self.keys.delayed_count()]
        returned = 0
        # The newest chunk goes first: each chunk passes the one before it.
        for start in reversed(range(0, len(returns), REQUEUE_AT_MOST)):
            chunk = returns[start : start + REQUEUE_AT_MOST]
            while chunk:
                args = [v for r in chunk for v in (r.tag, r.message_id, r.mark.value, r.evidence)]
                count, left = run_script(client, "requeue", keys, args)
                returned, chunk = returned + int(count), chunk[: int(left)]
        return returned

    def renew(
        self,
        client: redis.Redis,
        hostname: str,
        held: Sequence[tuple[str, str]],
        *,
        leaving: bool = False,
    ) -> list[str]:
        """Extend leases, in slices; returns the tags that are gone.

        Arguments:
            client: a client that adds no key prefix.
            hostname: the worker's, for whoever finds its leases run out.
            held: each tag, with how many messages its run has when it was started, else "".
            leaving: the worker stops, so that none of them counts as started any more.
        """
        keys = [*self.keys.records(), self.keys.workers()]
        gone: list[str] = []
        for start in range(0, len(held), RENEW_AT_MOST):
            chunk = held[start : start + RENEW_AT_MOST]
            args = [self._lease_ms, hostname, int(leaving), *(v for pair in chunk for v in pair)]
            gone += [tag.decode() for tag in run_script(client, "renew", keys, args)]
        return gone

    def reclaim(self, client: redis.Redis) -> int:
        """Return messages of workers that have gone, of any queue, to the front of their queues.

        Returns how many, at most `RECLAIM_AT_MOST`, and fewer when they are big; -1 while everybody
        has time to renew, because the broker was away.
        """
        keys = [*self.keys.records(), self.keys.workers(), self.keys.reclaiming()]
        names = [self.keys.prefix, self.keys.separator, self.keys.ledger(""), self.keys.bell("")]
        return int(run_script(client, "reclaim", keys, [self._lease_ms, RECLAIM_AT_MOST, *names]))

    def bury(self, client: redis.Redis, queue: str, burials: Sequence[Burial]) -> Buried:
        """Move held messages of a queue to its dead letters, and trim these to their bounds.

        Without messages it only trims.
        """
        config = self.topology.queue(queue)
        keys = [*self.keys.records(), self.keys.dead(queue), self._ledger(queue)]
        bounds = [config.max_dead, int(config.max_dead_age * 1000)]
        buried = trimmed = 0
        for start in range(0, max(len(burials), 1), BURY_AT_MOST):
            chunk, is_more = burials[start : start + BURY_AT_MOST], 1
            # Whoever buries something leaves the rest of the trimming to the next one.
            while chunk or (is_more and not burials):
                entries = [v for b in chunk for v in (b.tag, b.evidence, b.payload)]
                numbers = map(int, run_script(client, "bury", keys, [*bounds, *entries]))
                count, gone, left, is_more = numbers
                buried, trimmed = buried + count, trimmed + gone
                chunk = chunk[len(chunk) - left :]
        return Buried(buried, trimmed)

    def announce(
        self, client: redis.Redis, worker: str, queues: Sequence[str], *, seconds: float
    ) -> int:
        """Say that a worker consumes these queues; returns the version of the settings.

        Arguments:
            client: a client that adds no key prefix.
            worker: see `routing.redis.consumers`.
            queues: the queues.
            seconds: how long that holds; 0 takes it back.
        """
        keys = [self.keys.settings_version()]
        for queue in queues:
            keys += [self.keys.consumers(queue), self._ledger(queue), self.keys.pace(queue)]
        return int(run_script(client, "announce", keys, [worker, int(seconds * 1000)]))

    @staticmethod
    def ring(client: redis.Redis, bell: str, *, expires_ms: int) -> None:
        """Wake one of those who wait for a bell.

        Arguments:
            client: a client that adds no key prefix.
            bell: its key.
            expires_ms: how long it is heard by whoever comes later.
        """
        pipeline = client.pipeline(transaction=False)
        pipeline.lpush(bell, "1")
        pipeline.pexpire(bell, expires_ms)
        pipeline.execute()

    def purge(self, client: redis.Redis, queue: str) -> int:
        """Drop every message of a queue that nobody holds; returns how many there were."""
        keys = [self.keys.bell(queue), self._ledger(queue), *self._delayed(queue)]
        keys += [self.keys.blocked(queue), *self.keys.ready_lists(queue)]
        dropped, left = 0, 1
        while left:
            count, left = map(int, run_script(client, "purge", keys, [self.keys.parked()]))
            dropped += count
        return dropped


@lru_cache(maxsize=1024)
def _push_keys(keys: Keys, queue: str, priority: int, bounds: Bounds, ledger: str) -> list[str]:
    """Return the keys of a push, made once: they would be a good part of its time."""
    names = [keys.ready(queue, priority), keys.bell(queue), ledger]
    names += [keys.dropped(queue), keys.dead(queue)] if bounds.drop else ["", ""]
    names += [keys.draining(queue), keys.pace(queue), keys.consumers(queue)]
    names.append(keys.claim(queue) if bounds.are_set else "")
    return names + (keys.ready_lists(queue) if bounds.are_set else [])
