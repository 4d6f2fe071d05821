"""Ends a channel's wait for a bell early: a queue has room again, or a delayed message is due.

Each channel listens to a bell of its own beside those of its queues, and rings it over a pooled
connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from redis import exceptions

from routing.inflight.fetch_policy import SETTLE_SECONDS, Allowance
from routing.redis.commands import OWN_BELL_MS
from routing.redis.faults import LOST, is_lost
from routing.transport.allowances import Allowances
from routing.transport.link import Link
from routing.transport.wakeup import Loop, Wakeup

logger = logging.getLogger(__name__)

#: What is due later is looked at again before.
HORIZON_SECONDS = 3.0


class OwnBell:
    """The bell that only one channel listens to.

    Arguments:
        link: the database.
        name: the channel's.
        allowances: what may be fetched.
        loop: returns the event loop, None where there is none.
    """

    def __init__(
        self, link: Link, name: str, allowances: Allowances, loop: Callable[[], Loop | None]
    ) -> None:
        self.key = link.commands.keys.own_bell(name)
        self._name = name
        self._link, self._allowances, self._loop = link, allowances, loop
        #: The queues that are listened to; None while nobody waits, or when it has been rung.
        self._listened: Collection[str] | None = None
        #: How much had left those that wait, and what was full, at the last look after a slice.
        self._seen = 0, 0
        self._for_room = Wakeup(self.ring_for_room, loop)
        self._alarm = Wakeup(self._ring_if_listening, loop)

    def listen(self, queues: Collection[str], *, deaf: Collection[str], due_in: float) -> None:
        """Note that a wait for bells begins.

        Arguments:
            queues: the queues whose bells are listened to.
            deaf: the others; they have no room now, or are asked with the next exchange.
            due_in: seconds until the next delayed message is due.
        """
        self._listened = queues
        if due_in < HORIZON_SECONDS:
            self._alarm.within(max(0.0, due_in))
        if deaf:
            self._link.holdings.settlers.await_room[self._name] = self._room_freed
            self._seen = self._link.holdings.ready.left, self._allowances.full
            self._room_freed("")  # what ended since the look has told nobody

    def is_over(self) -> None:
        """Note that the wait has ended."""
        self._listened = None
        self._link.holdings.settlers.await_room.pop(self._name, None)

    def _room_freed(self, queue: str) -> None:
        """Look whether a queue that is not listened to has room; soon, where that takes a thread.

        The ending of any queue frees bytes, or a slot, which may be what another one lacks.
        """
        if (listened := self._listened) is None:
            return
        if (loop := self._loop()) is None or not loop.is_here:
            self._for_room.within(SETTLE_SECONDS)
        elif rooms := self._rooms_beside(listened):
            if any(one.is_worth_a_call for one in rooms):
                self._ring_if_listening()
            else:
                self._for_room.within(SETTLE_SECONDS)
        elif not queue:  # a slot: its process may not be there yet, or its end not so near
            self._for_room.within(SETTLE_SECONDS)

    def _rooms_beside(self, listened: Collection[str]) -> Sequence[Allowance]:
        """Return the allowances of the queues that have room and are not listened to."""
        return [
            one for one in self._allowances.all() if one.credit > 0 and one.queue not in listened
        ]

    def slice_delivered(self, *, more: bool) -> None:
        """Ring for room after a slice of what has come: the last one, or one that has made some.

        Arguments:
            more: whether more of it waits to be delivered.
        """
        now = self._link.holdings.ready.left, self._allowances.full
        if not more or now != self._seen:
            self._seen = now
            self.ring_for_room()

    def ring_for_room(self) -> None:
        """Ring when a queue that is not listened to has room."""
        if (listened := self._listened) is not None and self._rooms_beside(listened):
            self._ring_if_listening()

    def _ring_if_listening(self) -> None:
        if self._listened is not None:
            self._listened = None
            self.ring()

    def ring(self) -> bool:
        """Ring; False when the connection for that is lost."""
        try:
            self._link.commands.ring(self._link.client, self.key, expires_ms=OWN_BELL_MS)
        except (*LOST, exceptions.RedisError) as error:
            # Lost, or full: then the wait for a bell ends by its timeout.
            logger.debug("could not ring: %s", error)
            return not is_lost(error)
        return True

    def close(self) -> None:
        """Ring no more by itself; closing twice is safe."""
        self.is_over()
        self._for_room.stop()
        self._alarm.stop()
