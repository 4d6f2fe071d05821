"""Fetches one message by itself, over a pooled connection: for ``basic_get``."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty
from typing import Any

from routing.inflight.held import State
from routing.redis.values import NOTHING, Fetch
from routing.transport.delivery import Delivery
from routing.transport.link import Link


class Getter:
    """Fetches single messages for one channel.

    Arguments:
        link: the database.
        delivery: decodes what has come.
        next_prefix: returns what begins the tags of a fetch.
    """

    def __init__(self, link: Link, delivery: Delivery, next_prefix: Callable[[], str]) -> None:
        self._link, self._delivery, self._next_prefix = link, delivery, next_prefix

    def get(self, queue: str) -> dict[str, Any]:
        """Return the next message of a queue, as kombu takes it.

        Raises:
            queue.Empty: no message waits.
        """
        holdings, fetch = self._link.holdings, Fetch(self._next_prefix(), ((queue, 1),))
        holdings.asking(fetch)
        try:
            reply = self._link.commands.exchange(self._link.client, NOTHING, fetch)
        except Exception:
            holdings.unanswered(fetch)
            raise
        holdings.answered(fetch, reply.sizes())
        if not reply.arrivals:
            raise Empty()
        message = self._delivery.message_or_refuse(reply.arrivals[0])
        if holdings.durable:  # a task gets it, and works on it: it waits for no slot of this worker
            holdings.mark([reply.arrivals[0].tag], State.HANDED)
        return message
