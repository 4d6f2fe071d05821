"""Tells the broker which queues a worker consumes, and hears from it what was set for them.

Whoever changes a setting rings the bell that this waits for, so it holds everywhere at once; a bell
that was lost costs one interval. It also looks for queues that nobody consumes: their messages
would wait without a word. A thread of its own does that, in every pool: what runs in the event
loop, or holds it up, delays none of it.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from celery import bootsteps

from routing.redis.commands import OWN_BELL_MS
from routing.redis.consumers import Consumer
from routing.redis.faults import ANY_FAULT, LOST
from routing.redis.ledger import Ledger, QueueLedger, read
from routing.transport.channel import EngineMixin

logger = logging.getLogger(__name__)

#: Seconds from one announcement to the next. With the wait for the bell, and a look at the queues
#: every other time, that is less than one short call a second.
ANNOUNCE_SECONDS = 3.0

#: A worker that has not announced itself for so long is gone: five announcements may be lost.
GONE_SECONDS = 15.0

#: Looks at the queues are so many announcements apart.
LOOK_EVERY = 2

#: Seconds for which a queue must have had no consumer before that is told: what a worker that is
#: restarted needs. With the time until a dead one is gone it is told within 30 s.
NEGLECT_SECONDS = 5.0

#: Whoever stops the worker waits so long for an announcement that is on its way.
LEAVE_SECONDS = 1.0


class Presence:
    """The upkeep job of one worker.

    Arguments:
        consumer: the worker's consumer.
    """

    interval_seconds = ANNOUNCE_SECONDS

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        slots = (
            getattr(consumer.controller, "max_concurrency", 0) or consumer.pool.num_processes or 1
        )
        self._name = Consumer(_bell_of(os.getpid()), int(slots), consumer.hostname)
        self._announced: Sequence[str] = ()
        self._announcing = threading.Lock()
        self._has_left = False
        self._neglect = Neglect()
        self._rounds = 0

    def run(self, channel: EngineMixin) -> None:
        """Announce, look, and wait for the bell until the next time."""
        until = time.monotonic() + self.interval_seconds
        self._announce(channel)
        if self._rounds % LOOK_EVERY == 0:
            self._look(channel)
        self._rounds += 1
        while (left := until - time.monotonic()) > 0 and not self._has_left:
            if self._is_rung(channel, left):
                self._announce(channel)

    def _announce(self, channel: EngineMixin) -> None:
        queues = list(self._consumer.app.amqp.queues.consume_from)
        ended = [queue for queue in self._announced if queue not in queues]
        commands, client, name = channel.commands, channel.plain_client, str(self._name)
        with self._announcing:
            if self._has_left:
                return
            if ended:
                commands.announce(client, name, ended, seconds=0)
            self._announced = queues
            version = commands.announce(client, name, queues, seconds=GONE_SECONDS)
        if version != channel.runtime.live.version:
            channel.runtime.refresh(commands, client)

    def _is_rung(self, channel: EngineMixin, seconds: float) -> bool:
        client: Any = channel.plain_client
        patience = client.connection_pool.connection_kwargs.get("socket_timeout") or seconds * 2
        seconds = max(0.05, min(seconds, patience / 2))
        return client.brpop(self._bell(channel), timeout=seconds) is not None

    def _bell(self, channel: EngineMixin) -> str:
        return channel.commands.keys.own_bell(self._name.bell)

    def _look(self, channel: EngineMixin) -> None:
        for queue in self._neglect.look(read(channel.plain_client, channel.commands)):
            waiting = queue.waiting + queue.due
            logger.warning(
                "queue %r: %s and no live worker consumes it: start one, with -Q %s or without -Q",
                queue.queue,
                "1 message waits" if waiting == 1 else f"{waiting} messages wait",
                queue.queue,
                extra={"event": "no_consumer", "queue": queue.queue, "waiting": queue.waiting},
            )
        for name in self._neglect.tended():
            logger.info(
                "queue %r has a consumer again",
                name,
                extra={"event": "consumed_again", "queue": name},
            )

    def leave(self) -> None:
        """Take the announcement back, when the worker stops and not only connects again."""
        self._has_left = True  # then another speaks for it
        if self._consumer.blueprint.state == bootsteps.RUN:
            return
        if not self._announcing.acquire(timeout=LEAVE_SECONDS):
            return
        try:
            channel = self._consumer.task_consumer.channel
            if not channel.closed:
                commands, client = channel.commands, channel.plain_client
                try:
                    if self._announced:
                        commands.announce(client, str(self._name), self._announced, seconds=0)
                finally:  # the thread is waited for, and it waits for this
                    commands.ring(client, self._bell(channel), expires_ms=OWN_BELL_MS)
        except (*LOST, ANY_FAULT, AttributeError) as error:
            logger.debug("it is forgotten in %g s: %s", GONE_SECONDS, error)
        finally:
            self._announcing.release()


class Neglect:
    """Which queues have had messages and no consumer for a while; each is told once, and its end.

    Arguments:
        after_seconds: for how long.
    """

    def __init__(self, after_seconds: float = NEGLECT_SECONDS) -> None:
        self._after_ms = after_seconds * 1000
        self._since: dict[str, int] = {}
        self._told: set[str] = set()
        self._tended: list[str] = []

    def look(self, ledger: Ledger) -> list[QueueLedger]:
        """Return the queues that are to be told of now."""
        found = []
        for queue in ledger.queues:
            if queue.is_neglected:
                since = self._since.setdefault(queue.queue, ledger.server_ms)
                if ledger.server_ms - since >= self._after_ms and queue.queue not in self._told:
                    self._told.add(queue.queue)
                    found.append(queue)
            else:
                self._since.pop(queue.queue, None)
                if queue.queue in self._told and queue.consumers:
                    self._told.remove(queue.queue)
                    self._tended.append(queue.queue)
        return found

    def tended(self) -> list[str]:
        """Return those that have a consumer again since they were told of."""
        tended, self._tended = self._tended, []
        return tended


@cache
def _bell_of(pid: int) -> str:
    """Return the name of a process's bell: pool processes are copies of their parent."""
    return secrets.token_hex(8)
