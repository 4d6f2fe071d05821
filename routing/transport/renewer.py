"""Renews the leases of what this worker holds: a native thread with a connection of its own.

No event loop can do that: in the solo pool a task blocks it, under gevent any greenlet that
computes does, and the parent of a prefork pool waits for a result backend now and then. Three
renewals fit into a lease, so that two lost ones cost nothing.

It also settles what has ended where the loop is too busy to. And it reports what has been started,
a moment after the start: a message whose worker is killed is charged a delivery only then. Short
tasks are over by then, and never cost a call. When the worker is told to stop it says goodbye,
which takes these reports back: what is killed after that, by whoever stops it, is charged nothing.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable

from redis import exceptions

from routing.inflight.locks import Signal, start_thread
from routing.redis.clocks import boot_seconds
from routing.redis.faults import LOST
from routing.transport.carrier import Carrier
from routing.transport.link import Link
from routing.transport.stuck import Stuck

logger = logging.getLogger(__name__)

#: A task that runs for longer is reported as started.
START_SECONDS = 0.01

#: What waits for longer to be settled has an event loop that is blocked: it is settled from here.
CARRY_AFTER_SECONDS = 0.05

#: Wait after a renewal that failed: a lost connection is opened again at the next one.
RETRY_SECONDS = 0.5

#: Whoever stops it waits so long for what it has in its hands: what is not settled runs again.
STOP_SECONDS = 5.0


def keep_leases(link: Link, *, hostname: str = "") -> None:
    """Have the leases of what this process holds renewed.

    A worker asks again, with its name, whenever it has connected: that may be another server.

    Arguments:
        link: the database, with a client that only this uses.
        hostname: the worker's name, for whoever finds its leases run out.
    """
    holdings = link.holdings
    if isinstance(holdings.keeper, Renewer) and hostname:
        holdings.keeper.follow(link, hostname)
    elif holdings.keeper is None:
        holdings.keeper = Renewer(link, hostname or socket.gethostname())


class Renewer:
    """Renews until it is stopped; it outlives the channel that its client was made for.

    Arguments:
        link: see `keep_leases`.
        hostname: see `keep_leases`.
    """

    def __init__(self, link: Link, hostname: str) -> None:
        self._holdings = link.holdings
        self._lease_seconds = link.holdings.topology.lease_seconds
        self._use(link, hostname)
        self._starts: deque[tuple[float, str]] = deque()
        self._signal = Signal()
        self._stopped = False
        self.leaving = False
        self._is_watching = self._is_carrying = False
        self._has_failed = False
        self._next_pass = self._next_carry = 0.0
        self._doubts = self._doubts_settled = 0
        self._holdings.lease_guard.confirm(boot_seconds() + self._lease_seconds)
        start_thread(self._run)

    def _use(self, link: Link, hostname: str) -> None:
        self.hostname, self._link = hostname, link
        self._carrier, self._stuck = Carrier(link), Stuck(link)

    def follow(self, link: Link, hostname: str) -> None:
        """Go on, at once, over this link."""
        self._use(link, hostname)
        self._next_pass = 0.0
        self._signal.set()

    def stop(self) -> None:
        """End soon, but not before what is just carried has arrived; stopping twice is safe."""
        self._stopped = True
        self._signal.set()
        until = time.monotonic() + STOP_SECONDS
        while self._is_carrying and time.monotonic() < until:
            time.sleep(0.005)

    def started(self, tags: Iterable[str]) -> None:
        """Note that runs of messages begin."""
        now = boot_seconds()
        self._starts.extend([(now, tag) for tag in tags])
        self.watch()

    def watch(self) -> None:
        """Watch for a moment what waits for a slot, and what is owed to the broker."""
        if not self._is_watching:
            self._is_watching = True
            self._signal.set()

    def leave(self) -> None:
        """Say goodbye at once; doing so twice is safe, and in a signal handler too."""
        if not self.leaving:
            self.leaving = True
            self._next_pass = 0.0
            self._signal.set()

    def check_now(self) -> None:
        """Renew at once: what is held may have been given to others."""
        self._doubts += 1
        self._holdings.lease_guard.drop()
        self._signal.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._work()
            except Exception:
                logger.exception("renewing leases failed", extra={"event": "renewal_failed"})
                self._next_pass = boot_seconds() + RETRY_SECONDS
        self._link.client.connection_pool.disconnect()

    def _work(self) -> None:
        if boot_seconds() >= self._next_pass or self._doubts != self._doubts_settled:
            self._renew()
        self._signal.wait(self._next_look() - boot_seconds())
        self._report_starts()
        self._carry_for_a_blocked_loop()
        self._return_stuck()
        if not self._has_to_watch:
            self._is_watching = False
            self._is_watching = self._has_to_watch  # what came in between has set no signal

    def _next_look(self) -> float:
        if not self._is_watching:
            return self._next_pass
        soon = boot_seconds() + START_SECONDS
        return min(self._next_pass, soon if self._starts else max(soon, self._next_carry))

    # -- renewing

    def _renew(self) -> None:
        sent, doubts = boot_seconds(), self._doubts
        # Whoever hears nothing starts nothing either: what waits is for others to take.
        is_unheard = self._holdings.settlers.is_unheard(self._lease_seconds)
        held = self._holdings.leases(without_waiting=is_unheard)
        try:
            gone = self._link.commands.renew(
                self._link.client, self.hostname, held, leaving=self.leaving
            )
        except (*LOST, exceptions.RedisError) as error:
            self._next_pass = boot_seconds() + RETRY_SECONDS
            self._log_failure(error)
            return
        self._next_pass = sent + self._lease_seconds / 3
        self._has_failed = False
        # What is gone goes before the lease_guard opens again.
        if forgotten := self._holdings.forget(gone):
            self._log_gone(forgotten)
        self._doubts_settled = doubts
        if is_unheard:
            self._holdings.lease_guard.drop()
        elif doubts == self._doubts:
            self._holdings.lease_guard.confirm(sent + self._lease_seconds)

    def _log_failure(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "leases could not be renewed, trying again; in %.0f s this worker starts nothing "
                "until they can: %s",
                max(0.0, self._holdings.lease_guard.seconds_left),
                error,
                extra={"event": "renewal_failed"},
            )

    def _log_gone(self, count: int) -> None:
        logger.warning(
            "%d messages are other workers' now: for longer than the lease (%g s) this worker was "
            "stopped, or the broker out of reach; what runs of them may run twice",
            count,
            self._lease_seconds,
            extra={"event": "leases_lost", "count": count},
        )

    # -- starts

    def _report_starts(self) -> None:
        until = boot_seconds() - START_SECONDS
        tags = []
        while self._starts and self._starts[0][0] <= until:
            tags.append(self._starts.popleft()[1])
        if not self.leaving and (running := self._holdings.started(tags)):
            try:
                self._link.commands.renew(self._link.client, self.hostname, running)
            except (*LOST, exceptions.RedisError) as error:
                logger.debug("starts are reported with the next renewal: %s", error)

    # -- what waits, and what has ended

    @property
    def _has_to_watch(self) -> bool:
        is_owed = self._holdings.outbox.waits_seconds > 0
        return is_owed or bool(self._starts) or not self._holdings.ready.is_empty

    def _return_stuck(self) -> None:
        """Give what gets no slot here to others, also while the loop is blocked."""
        if not self.leaving:
            self._carry(self._requeue_stuck)

    def _requeue_stuck(self) -> None:
        if self._stuck.requeue():
            self._carrier.requeue()

    def _carry_for_a_blocked_loop(self) -> None:
        """Carry what the event loop has left for too long: a task runs in it, or it computes."""
        if self._holdings.outbox.waits_seconds < CARRY_AFTER_SECONDS:
            return
        if boot_seconds() < self._next_carry:
            return
        self._next_carry = boot_seconds() + RETRY_SECONDS  # whatever it may raise
        if self._carry(self._carry_all):
            self._next_carry = 0.0

    def _carry_all(self) -> None:
        self._carrier.carry_again(CARRY_AFTER_SECONDS)
        self._carrier.carry_all()

    def _carry(self, carry: Callable[[], object]) -> bool:
        """Carry something; False when it could not be, and then it is kept."""
        self._is_carrying = True  # before it looks, so that `stop` waits for it or it does nothing
        try:
            if not self._stopped:
                carry()
            return True
        except (*LOST, exceptions.RedisError) as error:
            logger.debug("what has ended is settled a little later: %s", error)
        except Exception:
            logger.exception("what has ended could not be settled")
        finally:
            self._is_carrying = False
        return False
