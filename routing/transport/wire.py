"""The connection that a channel waits on: one command out at a time, driven by kombu's poller.

kombu looks at two attributes of the channel, whether a command is out and since when; they are
written here and nowhere else.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Any, Protocol

from redis import exceptions

from routing import upstream
from routing.inflight.locks import original
from routing.redis.clocks import boot_seconds
from routing.redis.faults import ANSWERED, LOST


class Polled(Protocol):
    """What kombu's poller knows of a channel."""

    #: Has the connection on which a command is out.
    client: Any

    @property
    def plain_client(self) -> Any:
        """A client that adds no key prefix."""


class Wire:
    """Sends commands on a channel's polled connection, and reads their replies.

    Arguments:
        polled: the channel, as kombu's poller sees it.
    """

    def __init__(self, polled: Polled) -> None:
        self._polled = polled
        #: When the last command was sent, by `boot_seconds`.
        self.sent_at = 0.0

    @property
    def is_out(self) -> bool:
        """Whether a command waits for its reply."""
        return bool(upstream.IN_POLL.of(self._polled))

    def send(self, args: Sequence[Any]) -> None:
        """Send a command.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost.
        """
        connection = self._polled.client.connection
        upstream.SENT_AT.put(self._polled, time.monotonic())
        self.sent_at = boot_seconds()
        upstream.IN_POLL.put(
            self._polled, connection
        )  # last: whoever looks at how old it is looks at this
        try:
            connection.send_command(*args)
        except LOST:
            upstream.IN_POLL.put(self._polled, None)
            raise

    def read(self) -> Any:
        """Read the reply that is due; no command is out then.

        Raises:
            redis.exceptions.RedisError: what the server answered, or the loss of the connection.
        """
        # The plain client's parser: kombu's prefixing one would cut what looks like a prefix.
        try:
            reply = self._polled.plain_client.parse_response(
                self._polled.client.connection, "EVALSHA"
            )
        except ANSWERED:
            upstream.IN_POLL.put(self._polled, None)
            raise
        except LOST:
            self.drop()
            raise
        upstream.IN_POLL.of(self._polled).heard()
        upstream.IN_POLL.put(self._polled, None)
        return reply

    def forget(self) -> None:
        """Note that no command is out any more."""
        upstream.IN_POLL.put(self._polled, None)

    def drop(self) -> None:
        """Close the connection."""
        upstream.IN_POLL.put(self._polled, None)
        self._polled.client.connection.disconnect()

    @property
    def is_doubtful(self) -> bool:
        """Whether the reply that is due may never come, as another connection has heard nothing."""
        return bool(upstream.IN_POLL.of(self._polled).is_doubtful)

    def check_silence(self, *, longest_wait: float) -> None:
        """Drop a connection on which a command has had no reply for longer than it may take.

        The loop waits for a reply without reading, so no timeout of the socket ends that.

        Arguments:
            longest_wait: seconds that the server itself waits before it answers, at most.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost.
        """
        limit = getattr(upstream.IN_POLL.of(self._polled), "socket_timeout", None)
        if limit and self.is_silent(limit + longest_wait):
            upstream.IN_POLL.of(self._polled).heard_nothing()
            self.drop()
            raise exceptions.ConnectionError(f"the broker did not answer for {limit:g} s")

    def is_silent(self, seconds: float) -> bool:
        """Return whether a command has had no reply for so long; safe from any thread.

        A reply that has come and was not read yet (the loop was busy) is one.
        """
        connection, sent_at = upstream.IN_POLL.of(self._polled), upstream.SENT_AT.of(self._polled)
        if not connection or sent_at is None or time.monotonic() - sent_at < seconds:
            return False
        sock = upstream.SOCKET.find(connection)
        return sock is not None and not _is_readable(sock)


def _is_readable(sock: Any) -> bool:
    try:
        poller = original("select", "poll")()
        poller.register(sock.fileno(), select.POLLIN)
        return bool(poller.poll(0))
    except (OSError, ValueError):
        return True  # closed meanwhile: whoever reads finds out
