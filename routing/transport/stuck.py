"""Gives work that gets no slot here to a worker that has one free, and only then.

Who waits for a queue takes the token off its bell at once. So a bell that has a token tells that
nobody waits, and work that is stuck stays: to give it back and to fetch it again would cost more
than it takes to wait. To a bell without one a token is given; when it is gone at the next look,
somebody has come for it.
"""

from __future__ import annotations

import time

from routing.redis.commands import BELL_MS, OWN_BELL_MS
from routing.transport.link import Link

#: Between two looks at the bell of a queue of which work is stuck.
LOOK_SECONDS = 0.01

#: Looks are that far apart while nobody waits.
BUSY_SECONDS = 0.02


class Stuck:
    """What is stuck of the messages of one database.

    Arguments:
        link: the database, with a client for the thread that looks.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._look_at: dict[str, float] = {}
        #: When the bells were rung that had no token at the last look.
        self._rung_at: dict[str, float] = {}

    def requeue(self) -> int:
        """Note what others can start as requeued; returns how many messages.

        Raises:
            redis.exceptions.RedisError: the server is away, or refuses.
        """
        holdings, now, returned = self._link.holdings, time.monotonic(), 0
        stuck = holdings.ready.stuck() if holdings.durable else []
        self._rung_at = {queue: at for queue, at in self._rung_at.items() if queue in stuck}
        for queue in stuck:
            if now >= self._look_at.get(queue, 0.0) and self._is_awaited(queue):
                returned += holdings.requeue_waiting(queue)
        return returned

    def _is_awaited(self, queue: str) -> bool:
        client, commands = self._link.client, self._link.commands
        bell = commands.keys.bell(queue)
        if own_bell := self._link.holdings.ready.own_bell(queue):
            # It would take the token itself, though its loop may be blocked.
            self._link.holdings.ready.hears([queue])
            commands.ring(client, own_bell, expires_ms=OWN_BELL_MS)
            return False
        is_silent = not client.exists(bell)
        now, ready = time.monotonic(), self._link.holdings.ready
        self._look_at[queue] = now + (LOOK_SECONDS if is_silent else BUSY_SECONDS)
        rung_at = self._rung_at.pop(queue, None)
        if not is_silent or ready.has_heard(queue, rung_at or now):
            return False  # nobody came, or it was this worker
        if rung_at is not None:
            return True
        self._rung_at[queue] = now
        commands.ring(client, bell, expires_ms=BELL_MS)
        return False
