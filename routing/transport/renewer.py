"""Renews the leases of what this worker holds: a native thread with a connection of its own.

No event loop can do that: in the solo pool a task blocks it, under gevent any greenlet that
computes does, and the parent of a prefork pool waits for a result backend now and then. Three
renewals fit into a lease, so that two lost ones cost nothing.

The thread also reports what has been started, a moment after the start: a message whose worker is
killed is charged a delivery only then. Short tasks are over by then, and never cost a call. When
the worker is told to stop it says goodbye, which takes these reports back: what is killed after
that, by whoever stops it, is charged nothing.
"""

from __future__ import annotations

import logging
import math
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import redis
from redis import exceptions

from routing.inflight.locks import Signal, start_thread
from routing.redis.clocks import boot_seconds
from routing.redis.faults import LOST
from routing.redis.values import NOTHING, Fetch

if TYPE_CHECKING:
    from routing.transport.channel import EngineMixin

logger = logging.getLogger(__name__)

#: A task that runs for longer is reported as started.
START_SECONDS = 0.01

#: Endings that wait for longer have an event loop that is blocked: they are settled from here.
SETTLE_AFTER_SECONDS = 1.0

#: Wait after a renewal that failed: a lost connection is opened again at the next one.
RETRY_SECONDS = 0.5


def keep_leases(channel: EngineMixin, *, hostname: str = "") -> None:
    """Have the leases of what this process holds renewed.

    A worker asks again, with its name, whenever it has connected: that may be another broker.

    Arguments:
        channel: a channel of the broker.
        hostname: the worker's name, for whoever finds its leases run out.
    """
    holdings = channel.runtime.holdings
    if holdings.keeper is None:
        holdings.keeper = Renewer(channel, hostname or socket.gethostname())
    elif hostname:
        holdings.keeper.follow(channel, hostname)


class Renewer:
    """Renews until it is stopped; it outlives the channel that it takes its parameters from.

    Arguments:
        channel: a channel of the broker.
        hostname: see `keep_leases`.
    """

    def __init__(self, channel: EngineMixin, hostname: str) -> None:
        self._holdings = channel.runtime.holdings
        self._lease_seconds = channel.runtime.topology.lease_seconds
        self._use(channel, hostname)
        self._starts: deque[tuple[float, str]] = deque()
        self._signal = Signal()
        self._stopped = False
        self.leaving = False
        self._is_watching = False
        self._has_failed = False
        self._next_pass = 0.0
        self._doubts = self._doubts_settled = 0
        self._holdings.fence.confirm(boot_seconds() + self._lease_seconds)
        start_thread(self._run)

    def _use(self, channel: EngineMixin, hostname: str) -> None:
        self.hostname, self._verbs = hostname, channel.verbs
        self._client = _own_client(channel, self._lease_seconds / 3)

    def follow(self, channel: EngineMixin, hostname: str) -> None:
        """Go on, at once, at the broker of this channel."""
        self._use(channel, hostname)
        self._next_pass = 0.0
        self._signal.set()

    def stop(self) -> None:
        """End soon; stopping twice is safe."""
        self._stopped = True
        self._signal.set()

    def started(self, tag: str) -> None:
        """Note that a message's run begins."""
        self._starts.append((boot_seconds(), tag))
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
        self._holdings.fence.drop()
        self._signal.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._work()
            except Exception:
                logger.exception("renewing leases failed", extra={"event": "renewal_failed"})
                self._next_pass = boot_seconds() + RETRY_SECONDS
        self._client.connection_pool.disconnect()

    def _work(self) -> None:
        if boot_seconds() >= self._next_pass or self._doubts != self._doubts_settled:
            self._renew()
        until_pass = self._next_pass - boot_seconds()
        self._signal.wait(min(until_pass, START_SECONDS) if self._is_watching else until_pass)
        self._report_starts()

    # -- renewing

    def _renew(self) -> None:
        sent, doubts = boot_seconds(), self._doubts
        # Whoever hears nothing starts nothing either: what waits is for others to take.
        is_unheard = self._holdings.is_unheard(self._lease_seconds)
        held = self._holdings.leases(without_waiting=is_unheard)
        try:
            gone = self._verbs.renew(self._client, self.hostname, held, leaving=self.leaving)
        except (*LOST, exceptions.RedisError) as error:
            self._next_pass = boot_seconds() + RETRY_SECONDS
            self._log_failure(error)
            return
        self._next_pass = sent + self._lease_seconds / 3
        self._has_failed = False
        # What is gone goes before the fence opens again.
        if forgotten := self._holdings.forget(gone):
            self._log_gone(forgotten)
        self._doubts_settled = doubts
        if is_unheard:
            self._holdings.fence.drop()
        elif doubts == self._doubts:
            self._holdings.fence.confirm(sent + self._lease_seconds)
        # Afterwards: whatever becomes of it, the leases are renewed.
        if self._holdings.outbox.age >= SETTLE_AFTER_SECONDS:
            self._settle_for_a_blocked_loop()

    def _settle_for_a_blocked_loop(self) -> None:
        outbox = self._holdings.outbox
        settlement, burials = outbox.take_settlement(), outbox.take_burials()
        try:
            self._verbs.exchange(self._client, settlement, Fetch("", ()))
            settlement = NOTHING
            for queue, entries in burials.items():
                self._verbs.bury(self._client, queue, entries)
        except Exception as error:
            # Doing either twice changes nothing.
            outbox.restore_settlement(settlement)
            outbox.restore_burials(burials)
            if not isinstance(error, (*LOST, exceptions.RedisError)):
                raise
            logger.debug("what has ended is settled with a later renewal: %s", error)

    def _log_failure(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "leases could not be renewed, trying again; in %.0f s this worker starts nothing "
                "until they can: %s",
                max(0.0, self._holdings.fence.seconds_left),
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
                self._verbs.renew(self._client, self.hostname, running)
            except (*LOST, exceptions.RedisError) as error:
                logger.debug("starts are reported with the next renewal: %s", error)
        if not self._starts:
            self._is_watching = False
            # One that came in between has set no signal.
            self._is_watching = bool(self._starts)


def _own_client(channel: Any, timeout_seconds: float) -> redis.Redis:
    """Return a client for one thread, with the channel's parameters; Sentinel's go along."""
    pool = channel._get_pool()
    # A server that is silent must not hold up the renewal that could reach its successor.
    timeout_seconds = min(timeout_seconds, pool.connection_kwargs["socket_timeout"] or math.inf)
    pool.connection_kwargs["socket_timeout"] = timeout_seconds
    if "path" not in pool.connection_kwargs:  # a unix socket takes no such argument
        pool.connection_kwargs["socket_connect_timeout"] = timeout_seconds
    return redis.Redis(connection_pool=pool)
