"""Decides when what has ended goes to the server: within milliseconds, in company.

Mostly an exchange that fetches anyway carries it; where none is about to be sent, it goes over a
pooled connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from redis import exceptions

from routing.inflight.fetch_policy import SETTLE_SECONDS
from routing.redis.backoff import Backoff
from routing.redis.faults import ANSWERED, LOST, is_lost
from routing.transport.carrier import Carrier
from routing.transport.link import Link
from routing.transport.wakeup import Loop, Wakeup

logger = logging.getLogger(__name__)

#: After a lost connection, what waits is tried again so soon.
AGAIN_SECONDS = 0.5

#: How long a channel that closes waits for a server that refuses: what ended would run again.
STOP_SECONDS = 5.0


class Settler:
    """The settling half of one channel; safe from any thread.

    Arguments:
        link: the database.
        loop: returns the event loop, None where there is none.
    """

    def __init__(self, link: Link, loop: Callable[[], Loop | None]) -> None:
        self._carrier = Carrier(link)
        self._outbox = link.holdings.outbox
        self._loop = loop
        self._later = Wakeup(self._on_time, loop)
        self._settling = threading.RLock()
        self._refusals = Backoff("settle")
        #: Nobody fetches here, so whoever ends a message waits for it to be settled.
        self.is_prompt = True
        #: An exchange that is about to be sent takes what waits along.
        self.rides = False
        self._is_closed = False

    @property
    def pause_seconds(self) -> float:
        """How long nothing is settled, as the server has refused it just now."""
        return self._refusals.seconds_left

    @property
    def will_look(self) -> bool:
        """Whether a timer will wake the loop."""
        return self._later.is_set

    def ended(self, *, at_once: bool = False) -> None:
        """Note that something waits; with `at_once` it is settled before this returns."""
        if at_once or self.is_prompt:
            self.flush()
            self._await_others()
        elif not self._later.is_set:
            self.look_later()

    def _await_others(self) -> None:
        """Wait for what the thread that renews has just taken: its call may be on its way."""
        while self._outbox.is_carried:
            time.sleep(0.001)
        if len(self._outbox):  # that call has failed
            self.flush()

    def look_later(self) -> None:
        """Wake the loop in some milliseconds, to settle what waits then."""
        self._later.within(max(SETTLE_SECONDS, self.pause_seconds))

    def _on_time(self) -> None:
        # The next tick of the loop carries it, and this has just woken the loop.
        if not (self.rides and self._loop() is not None):
            self.flush()

    def flush(self) -> None:
        """Settle what waits, as far as the server can be reached.

        On a closed channel nothing happens: it waits for the next one.
        """
        if self._is_closed:
            return
        if self.pause_seconds:
            self.look_later()
            return
        try:
            self.settle_now()
        except ANSWERED as error:
            self._refusals.refused(error)
            self.look_later()
        except (*LOST, exceptions.RedisError) as error:
            # The endings are kept. The consuming connection may be well, and notice nothing.
            logger.debug("could not settle yet: %s", error)
            self._later.within(AGAIN_SECONDS)
        else:
            self._refusals.passed()

    def settle_now(self) -> None:
        """Carry all endings and returns to the broker, and wait for it.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses; what waits is kept.
        """
        # One thread at a time: what another one of this channel carries is there, too, when this
        # returns, and the pool has not a connection for each.
        with self._settling:
            self._carrier.carry_all()

    def flush_at_last(self) -> None:
        """Settle what waits; a server that refuses is waited for."""
        until = time.monotonic() + STOP_SECONDS
        self.flush()
        while (seconds := self.pause_seconds) and time.monotonic() + seconds < until:
            time.sleep(seconds)
            self.flush()

    def requeue(self) -> None:
        """Return what is requeued; what is refused is kept, and holds up nothing."""
        if self._outbox.has_returns:
            self._carry(self._carrier.requeue)

    def bury(self) -> None:
        """Bury what became dead letters."""
        self._carry(self._carrier.bury)

    def _carry(self, carry: Callable[[], None]) -> None:
        if self.pause_seconds:
            return
        try:
            carry()
        except Exception as error:
            if is_lost(error):
                raise
            self._refusals.refused(error)

    def close(self) -> None:
        """Settle no more; closing twice is safe."""
        self._is_closed = True
        self._later.stop()
