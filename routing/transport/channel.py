"""Channels of the engine: kombu's Redis channels with the fetch, the acks and the bounds replaced.

Queues that are consumed with acknowledgement are the engine's. Queues without (control replies,
events) stay kombu's: no records, no bells, no ledger.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as stock

from routing import upstream
from routing.message.evidence import Evidence
from routing.redis.backoff import Backoff
from routing.redis.faults import ANSWERED, Sorting, sorting
from routing.redis.silence import set_timeouts, wary
from routing.redis.values import Mark
from routing.transport.allowances import Consumed
from routing.transport.delivery import NO_MESSAGE, Delivery
from routing.transport.fetcher import Fetcher
from routing.transport.getter import Getter
from routing.transport.inbox import SLICE_MESSAGES
from routing.transport.link import Link
from routing.transport.message import EngineMessage, EngineQoS
from routing.transport.producing import Publishing
from routing.transport.renewer import keep_leases
from routing.transport.schemes import stock_url
from routing.transport.settler import Settler
from routing.transport.wire import Wire

logger = logging.getLogger(__name__)


class EngineMixin(Publishing):
    """The engine's behaviour, over any of kombu's Redis channels."""

    QoS = EngineQoS
    Message = EngineMessage

    #: Stores the failure of a message that has an id and cannot be taken in; set by a worker.
    on_refused: Callable[[str, Exception], None] | None = None

    connection: Any
    connection_class: Any
    client: Any
    closed: bool
    active_queues: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._consumed = Consumed(lambda: self.active_queues, self._most_unfinished)
        #: For what is consumed without acknowledgement, which holds up nothing else.
        self._taking = Backoff("let this worker take what is not acknowledged")
        super().__init__(*args, **kwargs)

    @cached_property
    def settler(self) -> Settler:
        """Settles what ends of the messages that this channel has fetched."""
        return Settler(self.link, self._loop)

    @cached_property
    def fetcher(self) -> Fetcher:
        """The fetch loop of this channel."""
        wire = Wire(self)
        fetcher = Fetcher(
            self.link,
            wire,
            self._consumed,
            settler=self.settler,
            delivery=self._delivery,
            loop=self._loop,
        )
        self.link.holdings.settlers.attach(fetcher.name, self.settler, wire.is_silent)
        return fetcher

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(
            self.link,
            consumer_of=lambda queue: upstream.CONSUMERS.of(self.connection).get(queue),
            put_off=lambda error: self.fetcher.put_off(error),
            refuse=self._refuse,
        )

    @cached_property
    def _getter(self) -> Getter:
        return Getter(self.link, self._delivery, self.fetcher.next_prefix)

    def _loop(self) -> Any:
        connection = self.connection  # another thread may close the channel
        return None if connection is None else connection.loop

    def _refuse(self, task_id: str, error: Exception) -> None:
        if self.on_refused is not None:
            self.on_refused(task_id, error)

    def keep_leases(self, hostname: str = "") -> None:
        """Have the leases of what this process holds renewed; see `keep_leases`."""
        if self.link.holdings.keeper is None or hostname:
            keep_leases(self._separate_link(), hostname=hostname)

    def _separate_link(self) -> Link:
        """Return a link for one thread, with connections of its own; Sentinel's go along."""
        this: Any = self
        pool = this._get_pool()
        # A server that is silent must not hold up the renewal that could reach its successor.
        given = pool.connection_kwargs
        seconds = min(
            self.runtime.topology.lease_seconds / 3, given["socket_timeout"] or float("inf")
        )
        given["socket_timeout"] = seconds
        if "path" not in given:  # a unix socket takes no such argument
            given["socket_connect_timeout"] = seconds
        client = redis.Redis(connection_pool=pool)
        return replace(self.link, make_client=lambda: client)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection is None:
            # kombu publishes over the channel that it began with, also when what it declares first
            # has found the connection lost and made another.
            raise redis.ConnectionError("the channel is closed")
        params: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        lease_seconds = self.runtime.topology.lease_seconds
        set_timeouts(params, self.connection.client.transport_options or {}, lease_seconds)
        if not issubclass(params.get("connection_class") or self.connection_class, Sorting):
            # A unix socket's, which kombu names itself.
            params["connection_class"] = sorting(params["connection_class"])
        return params

    def _get_pool(self, asynchronous: bool = False) -> Any:
        pool: Any = super()._get_pool(asynchronous)  # type: ignore[misc]
        pool.__class__ = wary(pool.__class__)
        return pool

    # -- removing

    def _purge(self, queue: str) -> int:
        return self.commands.purge(self.plain_client, queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        this: Any = self
        super()._new_queue(queue, **kwargs)  # type: ignore[misc]
        if queue in self.runtime.topology and this._expires.pop(queue, None) is not None:
            # The server would drop the messages with the queue, and nobody would know.
            logger.warning(
                "queue %r is in the queue table: its x-expires is left out, as it would lose "
                "messages uncounted",
                queue,
                extra={"event": "queue_expiry_ignored"},
            )

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        this: Any = self
        commands, steps = self.commands, this.priority_steps
        # kombu unbinds the queue; its lists it would delete with what came meanwhile, uncounted.
        this.priority_steps = ()
        try:
            super()._delete(queue, *args, **kwargs)  # type: ignore[misc]
        finally:
            this.priority_steps = steps
        commands.purge(self.plain_client, queue)

    # -- consuming

    @property
    def engine_queues(self) -> Sequence[str]:
        """The queues that this channel consumes with acknowledgement."""
        return self._consumed.engine_queues

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; with acknowledgement it becomes the engine's."""
        this: Any = self
        consumed = super().basic_consume(queue, no_ack, *args, **kwargs)  # type: ignore[misc]
        if not no_ack and queue not in this._fanout_queues:
            self._consumed.add(kwargs["consumer_tag"], queue)
            self.settler.is_prompt = False
            self.keep_leases()
            self.fetcher.bell.ring_for_room()
        return consumed

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._consumed.remove(consumer_tag)
        cancelled = super()._basic_cancel(consumer_tag)  # type: ignore[misc]
        if queue is not None:
            self.fetcher.return_inbox(queue)
            if not self._consumed:
                self.settler.rides = False
        return cancelled

    def _most_unfinished(self) -> int:
        """What `basic_qos` says; not for a worker, whose queues have a prefetch each."""
        this: Any = self
        is_of_worker = self.on_refused is not None
        return 0 if is_of_worker else int(this.qos.prefetch_count or 0)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._consumed:
            self.fetcher.send_next()
        else:
            super()._brpop_start(timeout)  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> bool:
        this: Any = self
        if not self._consumed and not self._engine_is_out:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]
        try:
            arrived = self.fetcher.read_reply()
        finally:
            this._flush_brpop_reauth()
        self._read_free_queues()
        if not arrived:
            raise Empty()
        self.connection.inbox_filled()
        return True

    @property
    def _engine_is_out(self) -> bool:
        return "fetcher" in self.__dict__ and self.fetcher.is_out

    def _read_free_queues(self) -> None:
        """Deliver from the queues without acknowledgement, a slice of each."""
        if self._taking.seconds_left:
            return
        for queue in self._consumed.free_queues:
            for _ in range(SLICE_MESSAGES):
                try:
                    message = self._take(queue)
                except Empty:
                    break
                except ANSWERED as error:
                    self._taking.refused(error)
                    break
                self._deliver_free(message, queue)
            else:
                self.fetcher.bell.ring()

    def _deliver_free(self, message: Any, queue: str) -> None:
        """Hand on a message without acknowledgement; a malformed one is only logged."""
        try:
            upstream.DELIVER.of(self.connection)(message, queue)
        except NO_MESSAGE as error:
            logger.error(
                "queue %r: not a task message, and not kept, as nothing of this queue is: %r",
                queue,
                error,
                extra={"event": "message_undecodable"},
            )

    def _take(self, queue: str) -> dict[str, Any]:
        """Take a message off a queue for good: whoever consumes it does not acknowledge."""
        if queue not in self.runtime.topology.queues:
            raw: dict[str, Any] = super()._get(queue)  # type: ignore[misc]
            return raw
        message = self._getter.get(queue)
        properties = message["properties"]
        self.link.holdings.end(properties["delivery_tag"], "started", at_once=True)
        properties["delivery_tag"] = str(uuid.uuid4())
        return message

    def has_fetched(self, tag: Any) -> bool:
        """Return whether this channel gave a message its tag, and so held it when it came."""
        is_named = isinstance(tag, str) and "fetcher" in self.__dict__
        return is_named and tag.startswith(f"{self.fetcher.name}:")

    def _get(self, queue: str) -> dict[str, Any]:
        self.keep_leases()
        return self._getter.get(queue)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> EngineMessage | None:
        """Fetch one message, None when there is none; without acknowledgement it is just popped."""
        try:
            raw = self._take(queue) if no_ack else self._get(queue)
        except Empty:
            return None
        return self.Message(raw, channel=self)

    # -- endings

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """End a message as done."""
        self.link.holdings.end(delivery_tag, "done")

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a message as a dead letter, or return it to the front of its queue."""
        if requeue:
            self.link.holdings.requeue(delivery_tag, Mark.REDELIVERED)
        else:
            self.link.holdings.bury(delivery_tag, Evidence(reason="rejected"))

    def basic_recover(self, requeue: bool = False) -> None:
        """Return to their queues all messages that this channel holds and that have not ended."""
        self.link.holdings.requeue_all(of=self.fetcher.name)
        self.settler.flush()

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        """Do nothing: see `EngineQoS.restore_unacked`."""

    def _restore_at_beginning(self, message: Any) -> None:
        """Do nothing: see `EngineQoS.restore_unacked`."""

    # -- closing

    def close(self) -> None:
        """Settle what has ended, requeue what waits, close the connections."""
        if "fetcher" in self.__dict__ and not self.closed:
            self._leave()
        super().close()  # type: ignore[misc]

    def _leave(self) -> None:
        holdings = self.link.holdings
        if not holdings.durable:
            holdings.requeue_all(of=self.fetcher.name)
        self.fetcher.stand_down()
        self.fetcher.close()
        self.settler.close()
        holdings.detach(self.fetcher.name)


class EngineChannel(EngineMixin, stock.Channel):
    """A channel to one Redis or Valkey server."""

    connection_class = sorting(stock.Channel.connection_class)
    connection_class_ssl = sorting(stock.Channel.connection_class_ssl)
    from_transport_options = (*stock.Channel.from_transport_options, "celeriac")


class EngineSentinelChannel(EngineMixin, stock.SentinelChannel):
    """A channel to the master that Sentinel names."""

    connection_class = sorting(stock.SentinelChannel.connection_class)
    connection_class_ssl = sorting(stock.SentinelChannel.connection_class_ssl)
    from_transport_options = (*stock.SentinelChannel.from_transport_options, "celeriac")

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        # kombu looks for its own scheme in the list of Sentinels.
        conninfo = self.connection.client
        ours, conninfo.alt = conninfo.alt, [stock_url(url) for url in conninfo.alt]
        try:
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            conninfo.alt = ours
