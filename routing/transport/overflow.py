"""What becomes of messages for which a queue has no room, on the producer's side.

The script decides in one step what is appended, refused or dropped (`push.lua`). Here a producer of
a queue with ``overflow = "block"`` waits for room, what is refused becomes an error that says when
to try again, and drops are logged. Channels call it for every message and every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from routing.errors import MessageTooLarge, QueueDraining, QueueFull
from routing.message.eta import Delay
from routing.redis.bounds import Bounds, Terms, bounds_of
from routing.redis.values import Pushed
from routing.topology.model import Topology
from routing.topology.queue import QueueConfig
from routing.transport.blocking import why_not
from routing.transport.claim import Claim
from routing.transport.drops import DROPS
from routing.transport.gathering import Destination
from routing.transport.link import Link
from routing.transport.refusals import patiently
from routing.transport.room_wait import RoomWait

#: Limits of what `QueueFull` proposes: below, a producer would spin; above, it would miss that
#: workers have come back.
RETRY_AFTER_SECONDS = (0.1, 60.0)

#: Bytes that a push adds to a message: the server's time.
STAMP_BYTES = len(',"celeriac":{"at":1700000000000}')

#: Told how many more of the messages were accepted.
Took = Callable[[int], None]


def forget(count: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """Pushes to one queue as its policy says.

    Attributes:
        link: the database.
        destination: what the messages share.
        is_worker: whether this is a worker's own process.
        expires_ms: the queue's ``x-expires``: its lists go when nothing was pushed for so long;
            None for never, as for every queue of the table.
    """

    link: Link
    destination: Destination
    is_worker: bool
    expires_ms: int | None = None

    @property
    def queue(self) -> str:
        """The queue."""
        return self.destination.queue

    @property
    def delayed(self) -> bool:
        """Whether it is about delayed messages, which have a bound of their own."""
        return self.destination.delayed

    @property
    def topology(self) -> Topology:
        """The queue table."""
        return self.link.commands.topology

    @property
    def bounds(self) -> Bounds:
        """The bounds that hold here."""
        return bounds_of(self.topology, self.queue, delayed=self.delayed)

    @property
    def config(self) -> QueueConfig:
        """The queue's entry in the table."""
        return self.topology.queue(self.queue)

    def push(
        self,
        payloads: Sequence[str | bytes | Delay],
        terms: Terms = "",
        *,
        took: Took = forget,
    ) -> Pushed:
        """Push messages; what comes back refused stays refused.

        For ``block`` it returns when all are accepted or ``block_timeout`` has passed without room
        for the next one. `took` is told whenever more of them are accepted.
        """
        pushed = self.push_once(payloads, terms)
        took(pushed.accepted)
        if pushed.dropped and self.config.log_drops:
            DROPS.note(self.queue, self.config.overflow, pushed.dropped)
        if pushed.drains:
            return pushed
        if pushed.accepted < len(payloads) and self.config.overflow == "block" and terms != "none":
            claim = self.claim(payloads if terms == "whole" else ())
            blocked = _Blocked(overflow=self, terms=terms, took=took, claim=claim)
            try:
                return blocked.push_the_rest(payloads, pushed)
            finally:
                claim.end()
        return pushed

    def claim(self, payloads: Sequence[str | bytes | Delay]) -> Claim:
        """Return what keeps room for messages that must get in together, once they wait for it."""
        size_bytes = sum(map(size_of, payloads)) if self.bounds.max_bytes else 0
        return Claim(self.link, self.destination, messages=len(payloads), size_bytes=size_bytes)

    def push_once(
        self, payloads: Sequence[str | bytes | Delay], terms: Terms = "", who: str = ""
    ) -> Pushed:
        """Push what there is room for now; without messages, only look how much waits.

        Room that others than `who` have claimed counts as taken.
        """
        commands: Any = self.link.commands
        run = commands.delay if self.delayed else commands.push

        def attempt() -> Pushed:
            pushed: Pushed = run(
                self.link.client,
                self.queue,
                payloads,
                priority=self.destination.priority,
                terms=terms,
                who=who,
            )
            return pushed

        pushed = patiently(attempt, is_worker=self.is_worker, is_push=True)
        if self.expires_ms is not None and payloads:
            self._put_off_expiry(self.expires_ms)
        return pushed

    def _put_off_expiry(self, expires_ms: int) -> None:
        with self.link.client.pipeline(transaction=False) as pipeline:
            for name in self.link.commands.keys.ready_lists(self.queue):
                pipeline.pexpire(name, expires_ms)
            pipeline.execute()

    @property
    def block_seconds(self) -> float:
        """How long a producer waits for room; 0 where it must not wait."""
        config = self.config
        if config.overflow != "block" or self.why_not_waited:
            return 0.0
        return float("inf") if config.block_timeout is None else config.block_timeout

    @property
    def why_not_waited(self) -> str:
        """Why the caller must not wait although the policy is to; else ""."""
        if self.config.overflow != "block":
            return ""
        return why_not(self.queue, is_worker=self.is_worker)

    def patience(self) -> RoomWait:
        """Return the patience of a producer that begins to wait."""
        return RoomWait(self.block_seconds)

    def fits(self, found: Pushed, payloads: Sequence[str | bytes | Delay]) -> bool:
        """Return whether there is room for all of these beside what was found to wait."""
        bounds = self.bounds
        size = sum(map(size_of, payloads)) if bounds.max_bytes else 0
        return (not bounds.max_length or found.length + len(payloads) <= bounds.max_length) and (
            not bounds.max_bytes or found.size_bytes + size <= bounds.max_bytes
        )

    def full(self, pushed: Pushed, count: int, *, together: int = 1) -> QueueFull:
        """Return the error for what was refused of so many messages."""
        refused, waiting = count - pushed.accepted, pushed.length + pushed.accepted
        if pushed.drains:
            return QueueDraining(self.queue, waiting, pushed.limit, RETRY_AFTER_SECONDS[1])
        retry_after = retry_after_seconds(pushed, refused)
        is_consumed = pushed.consumers != 0 or pushed.pace_ms > 0
        max_length, max_bytes = pushed.limit, self.bounds.max_bytes
        why = self.why_not_waited
        is_long = max_length and waiting + refused > max_length
        if is_long and (waiting >= max_length or not (max_bytes and pushed.accepted)):
            unit = "delayed messages" if self.delayed else "messages"
            return QueueFull(
                self.queue, waiting, max_length, retry_after, unit, together, why, is_consumed
            )
        size_bytes = pushed.size_bytes
        return QueueFull(
            self.queue, size_bytes, max_bytes, retry_after, "bytes", 1, why, is_consumed
        )

    def check_size(self, payload: str | bytes | Delay) -> None:
        """Refuse a message that is bigger than any of the queue may be.

        Raises:
            MessageTooLarge: it is.
        """
        limit = self.largest
        if limit is None:
            return
        if (size := size_of(payload)) > limit:
            raise MessageTooLarge(self.queue, size, limit)

    @property
    def largest(self) -> int | None:
        """The most bytes that one message may have; None for no bound."""
        config = self.config
        return min((b for b in (config.max_message_bytes, config.max_bytes) if b), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blocked:
    """Pushes what was refused as soon as there is room, until patience ends."""

    overflow: Overflow
    terms: Terms
    took: Took
    claim: Claim

    def push_the_rest(self, payloads: Sequence[str | bytes | Delay], pushed: Pushed) -> Pushed:
        """Return what became of all of these; the first of them the queue had room for."""
        accepted, patience = pushed.accepted, self._patience(payloads)
        while room := self._await_room(payloads[accepted:], patience):
            some, who = payloads[accepted : accepted + room], self.claim.who
            pushed = self.overflow.push_once(some, self.terms, who)
            if pushed.accepted:
                accepted += pushed.accepted
                self.took(pushed.accepted)
                patience = self._patience(payloads)
        if accepted < len(payloads):
            # Counted as refused, once.
            pushed = self.overflow.push_once(payloads[accepted:], "none")
        # What waited before all of this, so to say: the sum is what waits now.
        length = pushed.length + pushed.accepted - accepted
        return replace(pushed, accepted=accepted, length=length)

    def _patience(self, payloads: Sequence[str | bytes | Delay]) -> RoomWait:
        empty = Pushed(0, 0, self.overflow.bounds.max_length)
        # What never fits whole would wait for ever.
        never_fits = self.terms == "whole" and not self.overflow.fits(empty, payloads)
        return RoomWait(0) if never_fits else self.overflow.patience()

    def _await_room(self, payloads: Sequence[str | bytes | Delay], patience: RoomWait) -> int:
        """Return how many of these the queue has room for; 0 when patience ends, or none is left.

        Many are sent in pieces of a tenth of the queue, so that it never runs dry, and the broker
        is not asked for each.
        """
        room, piece = 0, min(len(payloads), max(1, self.overflow.bounds.max_length // 10))
        while payloads and patience.wait():
            room = self._room(payloads, patience)
            if room >= piece or (room and patience.is_long):
                break
        return room

    def _room(self, payloads: Sequence[str | bytes | Delay], patience: RoomWait) -> int:
        self.claim.renew()
        found = self.overflow.push_once((), who=self.claim.who)
        limit = self.overflow.bounds.max_length
        patience.tell(lambda: self.overflow.full(found, 1))
        if found.drains:
            patience.end()
            return 0
        if not self.overflow.fits(found, payloads if self.terms == "whole" else payloads[:1]):
            return 0
        return min(len(payloads), limit - found.length) if limit else len(payloads)


def size_of(payload: str | bytes | Delay) -> int:
    """Return the bytes of a message as a queue stores it."""
    if isinstance(payload, Delay):
        payload = payload.payload
    is_bytes = isinstance(payload, bytes) or payload.isascii()
    return STAMP_BYTES + (len(payload) if is_bytes else len(payload.encode()))  # type: ignore[union-attr]


def retry_after_seconds(pushed: Pushed, refused: int) -> float:
    """Return after how many seconds there may be room for what was refused.

    By the pace at which the queue is worked off, lately. Where nothing has ended yet, by Little's
    law: what waits has come in while the oldest message waited, so that many leave in that time.
    Where nobody consumes it, nobody knows: the longest time.
    """
    least, most = RETRY_AFTER_SECONDS
    if pushed.pace_ms:
        seconds = refused * pushed.pace_ms / 1000
    elif pushed.consumers == 0:
        seconds = most
    elif pushed.age_ms and pushed.length:
        seconds = refused * pushed.age_ms / pushed.length / 1000
    else:
        return 1.0
    return max(least, min(most, seconds))
