"""The publishing half of a channel: messages go to the engine's queues by script, within bounds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import datetime
from functools import cached_property, partial
from typing import Any, TypeVar

import redis
from kombu.utils.json import dumps

from routing.message.eta import Delay, take_eta
from routing.message.exemption import is_exempt
from routing.message.gate import marked
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.transport import gathering
from routing.transport.gathering import Destination
from routing.transport.link import Link
from routing.transport.overflow import Overflow
from routing.transport.refusals import patiently
from routing.transport.runtime import Database, Runtime, database_of, lookup

T = TypeVar("T")


class Publishing:
    """What a producer needs of a channel, over any of kombu's Redis channels.

    Messages to queues outside of the table that are no tasks (control, events) stay kombu's.
    """

    #: Name of the application's runtime, from the transport options.
    celeriac: str | None = None

    pool: Any
    _plain_client: redis.Redis | None = None

    @cached_property
    def runtime(self) -> Runtime:
        """What the application has in this process."""
        return lookup(self.celeriac)

    @cached_property
    def commands(self) -> Commands:
        """The engine's calls, for this channel's database."""
        this: Any = self
        keys = Keys(
            prefix=this.global_keyprefix,
            unacked=this.unacked_key,
            unacked_index=this.unacked_index_key,
            steps=tuple(this.priority_steps),
            separator=this.sep,
        )
        return Commands(keys=keys, topology=self.runtime.topology)

    @cached_property
    def link(self) -> Link:
        """This channel's database, as others use it."""
        return Link(
            commands=self.commands,
            holdings=self.runtime.holdings_of(self._database()),
            make_client=partial(_client_of, weakref.ref(self)),
        )

    def _database(self) -> Database:
        this: Any = self
        transport = this.connection
        if transport is None or transport.client is None:
            raise redis.ConnectionError("the channel is closed")  # which is tried again
        return database_of(transport.client, prefix=this.global_keyprefix)

    @property
    def plain_client(self) -> redis.Redis:
        """A client over the pooled connections that adds no key prefix."""
        if self._plain_client is None or self._plain_client.connection_pool is not self.pool:
            self._plain_client = redis.Redis(connection_pool=self.pool)
        return self._plain_client

    def overflow(self, destination: Destination) -> Overflow:
        """Return what pushes messages there, and what becomes of those that find no room."""
        this: Any = self
        return Overflow(
            link=self.link,
            destination=destination,
            is_worker=self.runtime.is_worker,
            expires_ms=this._expires.get(destination.queue),
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, is_worker=self.runtime.is_worker)

    # What kombu asks before it publishes.

    def get_table(self, exchange: str) -> Any:
        """Return the bindings of an exchange."""
        stock: Any = super()
        return self._patiently(lambda: stock.get_table(exchange))

    def _size(self, queue: str) -> int:
        stock: Any = super()
        return self._patiently(lambda: int(stock._size(queue)))

    def _queue_bind(self, *args: Any, **options: Any) -> None:
        stock: Any = super()
        self._patiently(lambda: stock._queue_bind(*args, **options))

    def take_eta(self, queue: str, message: dict[str, Any]) -> datetime | None:
        """Return until when the broker is to keep a message, None to let it wait in line.

        On a queue outside of the table it stays in line: its workers may be stock Celery's.
        """
        return take_eta(message) if queue in self.runtime.topology else None

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        this: Any = self
        headers = message.get("headers") or {}
        if queue not in self.runtime.topology.queues and "task" not in headers:
            this._put_stock(queue, message, **kwargs)
            return
        priority = this._get_message_priority(message, reverse=False)
        eta = self.take_eta(queue, message) if "task" in headers else None
        delayed, payload = eta is not None, marked(message, dumps)
        self._put_payload(
            Destination(queue=queue, priority=priority, exempt=is_exempt(headers), delayed=delayed),
            Delay(eta, str(headers.get("id") or ""), payload) if eta else payload,
        )

    def _put_payload(self, destination: Destination, payload: str | Delay) -> None:
        overflow = self.overflow(destination)
        if not destination.exempt:
            overflow.check_size(payload)
        if (gathered := gathering.current()) is not None and gathered.takes(destination):
            gathered.add(destination, payload)
            return
        pushed = overflow.push([payload], "exempt" if destination.exempt else "")
        if not pushed.accepted:
            raise overflow.full(pushed, 1)

    def _put_stock(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        super()._put(queue, message, **kwargs)  # type: ignore[misc]


def _client_of(reference: weakref.ref[Publishing]) -> redis.Redis:
    """Return a channel's client; a strong reference would be a cycle, which keeps its sockets."""
    if (channel := reference()) is None:
        raise redis.ConnectionError("the channel is closed")
    return channel.plain_client
