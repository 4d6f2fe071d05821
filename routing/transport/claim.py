"""Room that a full queue keeps for messages that must get in together.

Where single messages take each place as it comes free, a group would wait for ever. So while it
waits, the broker counts the room that it needs as taken, for everybody else. Only one group at a
time has that, and after it the others have their turn. A claim ends by itself when nobody
renews it: whoever waited may have died.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

import redis

from routing.redis.faults import ServerRefused
from routing.transport.gathering import Destination
from routing.transport.link import Link

#: How long room is kept after the last look of who waits, who looks forty times a second.
KEPT_MS = 1000

#: How long nobody may claim after a group got in: single messages have their turn.
PAUSE_MS = 200


class Claim:
    """Room for messages in one queue, once it is asked for.

    Arguments:
        link: the database.
        destination: the queue.
        messages: how many they are; 0 for messages that can get in one by one, and claim nothing.
        size_bytes: how big they are together.
    """

    def __init__(
        self, link: Link, destination: Destination, *, messages: int, size_bytes: int
    ) -> None:
        self._link, self._destination = link, destination
        self._messages, self._size_bytes = messages, size_bytes
        #: Who waits, "" for nobody.
        self.who = secrets.token_hex(8) if messages else ""
        self._is_kept = False

    def renew(self) -> None:
        """Ask for the room, or for it to be kept on."""
        if self.who:
            with contextlib.suppress(ServerRefused):  # the next look asks again
                self._is_kept = self._call(self._messages, KEPT_MS)

    def end(self) -> None:
        """Let go of it; ending twice is safe."""
        if self._is_kept:
            self._is_kept = False
            with contextlib.suppress(redis.RedisError):  # it ends by itself
                self._call(0, PAUSE_MS)

    def _call(self, messages: int, kept_ms: int) -> bool:
        claim: Callable[..., bool] = self._link.commands.claim
        return claim(
            self._link.client,
            self._destination.queue,
            self.who,
            messages=messages,
            size_bytes=self._size_bytes,
            kept_ms=kept_ms,
            delayed=self._destination.delayed,
        )
