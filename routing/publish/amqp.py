"""Celery's AMQP layer with the queue table in it: connections, queues, router and publishing.

`install` gives an app a class of its own, made by `amqp_class`, whose ``topology`` and
``runtime_name`` lead to the table and to what this process holds. Everything is read when it is
needed, so that settings which are loaded or changed after ``install`` count.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kombu import Connection, Exchange, Queue
from kombu.connection import ConnectionPool, PooledConnection
from kombu.exceptions import OperationalError
from kombu.utils.objects import cached_property

from routing import upstream
from routing.errors import BrokerUnreachable
from routing.publish.attempt import Attempt, unreachable
from routing.publish.capture import Capture
from routing.publish.gates import note_gate
from routing.publish.levels import LevelPolicy, level_policy
from routing.publish.router import Router
from routing.publish.signatures import check_carried
from routing.topology.model import Topology
from routing.transport import runtime
from routing.transport.blocking import as_beat
from routing.transport.outage import waiting_of
from routing.transport.runtime import is_engine_connection
from routing.transport.schemes import engine_url, register_aliases, stock_url

logger = logging.getLogger(__name__)


class EngineConnection(Connection):
    """A connection whose URI prints as the user wrote it, also for unix sockets.

    It opens as often as the retry policy of a publication says. Kombu's opens together with its
    first channel, which gives up after ``broker_connection_timeout`` with an error that is not
    tried again: an outage that began while no connection was open ended after 4 s.
    """

    def ensure(
        self,
        obj: Any,
        fun: Callable[..., Any],
        errback: Callable[..., Any] | None = None,
        max_retries: int | None = None,
        *intervals: float,
        **options: Any,
    ) -> Callable[..., Any]:
        """Return what opens the connection and calls ``fun``, again after a lost connection."""
        ensured = super().ensure(obj, fun, errback, max_retries, *intervals, **options)
        names = ("interval_start", "interval_step", "interval_max")
        named = {name: options[name] for name in names if name in options}

        def connected(*args: Any, **kwargs: Any) -> Any:
            if not self.connected:
                self.ensure_connection(errback, max_retries, *intervals, **named)
            return ensured(*args, **kwargs)

        return connected

    def Pool(self, limit: int | None = None, **options: Any) -> ConnectionPool:  # noqa: N802
        """Return a pool of connections that open as this one does."""
        return EngineConnectionPool(self, limit, **options)

    def as_uri(self, *args: Any, **kwargs: Any) -> str:
        """Return the URI, with the stock scheme."""
        return stock_url(super().as_uri(*args, **kwargs))


class PooledEngineConnection(EngineConnection, PooledConnection):
    """An engine connection that its pool replaces after an error."""


class EngineConnectionPool(ConnectionPool):
    """A pool of engine connections: kombu's makes its own class of connections."""

    def new(self) -> PooledEngineConnection:
        """Return a connection that is not open yet."""
        made_as = upstream.CONNECTION_INFO.of(self.connection)(resolve=False)
        return PooledEngineConnection(self, **dict(made_as))


class RoutingAMQP:
    """What is ours, over the AMQP class that the app had."""

    #: Set by `amqp_class`.
    topology: Topology
    runtime_name: str
    level_policy: LevelPolicy | str | None
    stock: type

    app: Any
    queues: Any
    routes: Any
    router: Any

    def Connection(self, url: Any = None, *args: Any, **kwargs: Any) -> Connection:  # noqa: N802
        """Return a connection as Celery asked for it, on the engine where the broker is Redis.

        Every connection of the app comes from here, also when the URL is from the environment,
        which beats ``app.conf``.
        """
        url, transport = _on_engine(url, kwargs.pop("transport", None))
        options = {**(kwargs.pop("transport_options", None) or {}), "celeriac": self.runtime_name}
        connection = EngineConnection(
            url, *args, transport=transport, transport_options=options, **kwargs
        )
        if not is_engine_connection(connection):
            _say_engine_is_off(connection, self.topology)
        return connection

    BrokerConnection = Connection

    def Queues(self, queues: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802
        """Return the declarations of the app's own queues and those of the table."""
        return super().Queues(with_table_queues(queues, self.topology), *args, **kwargs)  # type: ignore[misc]

    def Router(self, queues: Any = None, create_missing: bool | None = None) -> Router:  # noqa: N802
        """Return the router that asks the table first."""
        return Router(
            self.routes,
            queues or self.queues,
            self.app.either("task_create_missing_queues", create_missing),
            app=self.app,
            topology=self.topology,
            policy=level_policy(level_policy_of(type(self))),
        )

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Publish a callback; in a worker that waits, for as long as the broker is away.

        A priority that it inherits would override its own: the router adds it where there is none.
        """
        if self.app.current_worker_task:
            kwargs.pop("priority", None)
        send: Any = super()
        return waiting_of(self.app).until_taken(
            "the broker", lambda: send._retry_publish(publish, *args, **kwargs)
        )

    @cached_property
    def create_task_message(self) -> Callable[..., Any]:
        """Return what makes a task message, and refuses what it carries that nobody can send.

        Not where it is sent: there, kombu takes a KeyError, as QueueNotFound is, for a lost broker.
        """
        make = super().create_task_message  # type: ignore[misc]

        @functools.wraps(make)
        def create(*args: Any, **kwargs: Any) -> Any:
            message = make(*args, **kwargs)
            check_carried(self.router, message)
            return message

        return create

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()  # type: ignore[misc]

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if is_captured := isinstance(producer, Capture):
                producer.note_event(message.sent_event, options)
            note_gate(self.app, producer.connection, name, message)
            waiting_of(self.app).before_sending(message)
            # A captured message is told of by who captured it.
            attempt = producer if is_captured else Attempt.of(producer)
            try:
                if (options.get("headers") or {}).get("celery_beat_task"):
                    with as_beat():
                        return send(attempt, name, message, **options)
                return send(attempt, name, message, **options)
            except Exception as error:
                told = error
                lost = (OperationalError, *producer.connection.recoverable_connection_errors)
                if isinstance(error, lost) and not isinstance(error, BrokerUnreachable):
                    told = unreachable(error, producer.connection)
                if isinstance(attempt, Attempt):
                    attempt.tell(name, told)
                if told is error:
                    raise
                raise told from error

        return send_task_message


class _PerApp(type):
    """The class of classes that `amqp_class` makes, which pickle by what they were made of."""


def amqp_class(
    stock: Any,
    *,
    topology: Topology,
    runtime_name: str,
    level_policy: LevelPolicy | str | None = None,
) -> type:
    """Return the class for one app, over the one that it had (ours is taken off first)."""
    register_aliases()
    base = getattr(stock, "stock", stock)
    attributes = {
        "topology": topology,
        "runtime_name": runtime_name,
        "level_policy": level_policy,
        "stock": base,
    }
    return _PerApp("RoutingAMQP", (RoutingAMQP, base), attributes)


def level_policy_of(kind: Any) -> LevelPolicy | str | None:
    """Return the level policy that such a class was made with, None for any other class."""
    found: LevelPolicy | str | None = inspect.getattr_static(kind, "level_policy", None)
    return found


def _restore(
    stock: Any, topology: Topology, runtime_name: str, policy: LevelPolicy | str | None
) -> type:
    """Make the class again in a process that was spawned, where no runtime has this name."""
    if runtime.lookup(runtime_name).topology != topology:
        runtime.create(runtime_name, topology)
    return amqp_class(stock, topology=topology, runtime_name=runtime_name, level_policy=policy)


def _reduce(kind: Any) -> tuple[Any, ...]:
    return _restore, (kind.stock, kind.topology, kind.runtime_name, level_policy_of(kind))


# Celery pickles the app, and its AMQP class with it, for pool processes that are spawned.
copyreg.pickle(_PerApp, _reduce)


def with_table_queues(own: Any, topology: Topology) -> Any:
    """Return ``task_queues`` with the table's queues added; the app's own declarations win.

    A declaration is the one that Celery makes for a queue it meets for the first time, so that
    stock producers and workers on the same broker agree with it.
    """
    declared = {name: Queue(name, Exchange(name), name) for name in topology.queues}
    if isinstance(own, Mapping):
        return {**declared, **own}
    names = {queue.name for queue in own or ()}
    return [*(own or ()), *(queue for name, queue in declared.items() if name not in names)]


def _on_engine(url: Any, transport: str | None) -> tuple[Any, str | None]:
    """Return URL (or URLs) and transport name rewritten so that Redis means the engine."""
    if isinstance(url, str) or url is None:
        url = engine_url(url) if url else url
    else:
        url = [engine_url(one) for one in _each(url)]
    if transport:
        # A transport that is set by name would win over the scheme of the URL.
        transport = engine_url(f"{transport}://").removesuffix("://")
    return url, transport


def _each(urls: Iterable[str]) -> Iterable[str]:
    return (part for url in urls for part in url.split(";"))


_SAID: set[str] = set()


def _say_engine_is_off(connection: Any, topology: Topology) -> None:
    """Say once a process and broker that only routing works here."""
    uri = f"{connection.transport_cls}://{connection.hostname or ''}"
    if uri in _SAID:
        return
    _SAID.add(uri)
    logger.info(
        "the broker %s is not Redis: routes and levels work; bounds, limits, prefetch per queue "
        "and delay_many in few round trips do not",
        uri,
        extra={"event": "engine_off"},
    )
    bounds = ("max_length", "max_bytes", "max_message_bytes", "max_delayed")
    bounded = [
        name
        for name, queue in topology.queues.items()
        if any(getattr(queue, bound) is not None for bound in bounds)
    ]
    if bounded:
        logger.warning(
            "the bounds are not enforced on %s, which is not Redis: queues %s can grow without "
            "bound; set a length limit on the broker itself",
            uri,
            ", ".join(bounded),
            extra={"event": "bounds_off"},
        )
    paced = [
        name
        for name, queue in topology.queues.items()
        if queue.concurrency is not None or queue.rate is not None
    ]
    limited = [f"queue {name!r}" for name in paced] + [f"{name!r}" for name in topology.limits]
    if limited:
        logger.warning(
            "no concurrency or rate is kept on %s, which is not Redis: the limits of %s do not "
            "hold; use Redis or Valkey where they must",
            uri,
            ", ".join(limited),
            extra={"event": "limits_off"},
        )
