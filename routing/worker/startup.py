"""What a worker checks when it starts, so that a mistake is an error now and not a riddle later."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from typing import Any

import click
from celery import bootsteps

from routing import upstream
from routing.errors import EngineError, TopologyError
from routing.inflight.prefetch import Prefetch
from routing.redis.permissions import denied, grant, unless_denied
from routing.redis.silence import silence_seconds
from routing.topology.checks import (
    batches_by_queue,
    check_worker,
    prefetch_needed,
    unknown_keys,
    usable_slots,
)
from routing.topology.model import Topology
from routing.topology.names import STOCK_QUEUE
from routing.transport import runtime
from routing.transport.channel import EngineMixin
from routing.transport.runtime import is_engine_connection, topology_of
from routing.worker.results import wait_for_results

logger = logging.getLogger(__name__)


class StartRefused(TopologyError, click.ClickException):
    """The worker cannot work with the queue table; the command line shows the message alone."""

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, message)


class CheckTable(bootsteps.Step):
    """Refuses a worker whose slots or batches do not fit the table; says what each queue gets."""

    requires = ("celery.worker.components:Pool",)

    def create(self, parent: Any) -> None:
        """Check, once the pool knows its size."""
        if (table := topology_of(parent.app)) is None:
            return
        upstream.check()
        queues = list(parent.app.amqp.queues.consume_from)
        wait_for_results(
            parent.app,
            silence_seconds=silence_seconds(table.lease_seconds),
            is_green=getattr(parent.pool, "is_green", False),
        )
        slots = parent.max_concurrency or getattr(parent.pool, "limit", None) or parent.concurrency
        batches = batches_by_queue(parent.app)
        try:
            check_worker(table, slots, batches, queues=queues)
        except TopologyError as error:
            raise StartRefused(f"this worker does not fit the queue table:\n{error}") from None
        prefetch = runtime.lookup(parent.app.amqp_cls.runtime_name).prefetch
        prefetch.batch_needs = {
            queue: prefetch_needed(table.queue(queue), slots, sizes)
            for queue, sizes in batches.items()
        }
        prefetch.slot_needs = {
            queue: usable_slots(table, queue, slots, taken=queues) for queue in queues
        }
        prefetch.slots = partial(_slots_now, parent, slots)
        # Celery's own prefetch holds on other brokers, and no limit does, as the connection says.
        if is_engine_connection(parent.app.connection_for_read()):
            self._tell(parent.app, table, queues, prefetch)

    def _tell(self, app: Any, table: Topology, queues: list[str], prefetch: Prefetch) -> None:
        logger.info(
            "prefetch by queue: %s",
            prefetch_line(prefetch, table, queues),
            extra={"event": "prefetch", "queues": queues},
        )
        for queue in queues:
            if lack := prefetch_lack(prefetch, queue):
                logger.warning("%s", lack, extra={"event": "small_prefetch", "queue": queue})
        warn_of_early_acks(app, table, queues)
        warn_of_unknown_keys(app, table)


def warn_of_early_acks(app: Any, table: Topology, queues: Collection[str]) -> None:
    """Warn of tasks that hold their slot of a concurrency only until they start."""
    limited = {queue for queue in queues if table.queue(queue).concurrency is not None}
    for name, task in app.tasks.items():
        found = table.limit_for(name)
        by_task = found is not None and found[1].concurrency is not None
        if task.acks_late or not (by_task or limited.intersection(_reached(app, task))):
            continue
        logger.warning(
            "task %r acknowledges before it runs (acks_late=False), so the concurrency that it "
            "falls under does not hold: its slot is free again when it starts",
            name,
            extra={"event": "early_ack_unlimited", "task_name": name},
        )


def warn_of_unknown_keys(app: Any, table: Topology) -> None:
    """Warn of limits for each value of an argument that their tasks do not have."""
    for unknown in unknown_keys(app, table):
        parameters = ", ".join(unknown.parameters) or "none"
        logger.warning(
            "limit %r: key %r is no argument of task %r, whose parameters are %s: all of its calls "
            "share one gate; correct the key in [limits]",
            unknown.limit,
            unknown.key,
            unknown.task,
            parameters,
            extra={
                "event": "limit_key_unknown",
                "limit": unknown.limit,
                "key": unknown.key,
                "task_name": unknown.task,
                "parameters": list(unknown.parameters),
            },
        )


def _reached(app: Any, task: Any) -> Collection[str]:
    """Return the queues that a task of the app's own may go to."""
    built_in = task.name.startswith("celery.")
    return () if built_in else app.amqp.router.reachable_queues(task)


def _slots_now(worker: Any, at_start: int) -> int:
    """Return a worker's slots, of which remote control may have added some."""
    try:
        return max(at_start, int(worker.pool.num_processes))
    except AttributeError:
        return at_start  # its processes are not there yet, or no more


class TellPrefetch(bootsteps.StartStopStep):
    """Says in `inspect stats`, and so in Flower, what a worker may hold, by queue and of all.

    Celery says there what its own prefetch would be, of which nothing comes with the engine.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def info(self, parent: Any) -> dict[str, Any]:
        """Return what takes the place of Celery's own number, which comes first."""
        channel = getattr(parent.task_consumer, "channel", None)
        if not isinstance(channel, EngineMixin):
            return {}
        prefetch = channel.link.holdings.prefetch
        by_queue = {queue: prefetch.of(queue) for queue in channel.engine_queues}
        return {"prefetch_count": sum(by_queue.values()), "prefetch_by_queue": by_queue}


class CheckServer(bootsteps.StartStopStep):
    """Refuses a Redis cluster, and warns of a server that may evict messages."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self._checked = False
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        """Check the server, on the first connection."""
        if self._checked or not is_engine_connection(parent.connection):
            return
        with parent.connection.channel() as channel:
            uri = parent.connection.as_uri()
            warn_of_denied(channel, uri=uri)
            if (info := unless_denied(channel.client.info)) is None:
                _warn_of_silence(uri)
            else:
                check_server(info, uri=uri)
            warn_of_stranded(channel, parent.app)
        warn_of_multiplier(parent)
        self._checked = True


def check_server(info: dict[str, Any], *, uri: str) -> None:
    """Judge a server by its INFO.

    Raises:
        EngineError: it is a cluster node, whose scripts cannot reach the keys of several queues.
    """
    if int(info.get("cluster_enabled", 0)):
        raise EngineError(
            f"{uri} runs in cluster mode, where a script cannot reach several queues: use a single "
            "server, with replicas and Sentinel where it must survive"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "%s has maxmemory-policy %s and may evict queues when its memory is full: set "
            "maxmemory-policy noeviction",
            uri,
            policy,
            extra={"event": "may_evict"},
        )


def _warn_of_silence(uri: str) -> None:
    logger.warning(
        "the user of %s may not run INFO, so nobody looked whether the server is a cluster node or "
        "may evict messages: it must be none, with maxmemory-policy noeviction",
        uri,
        extra={"event": "server_unseen"},
    )


def warn_of_denied(channel: Any, *, uri: str) -> None:
    """Name the commands that the engine needs and that its user may not run."""
    if names := denied(channel.plain_client, channel.commands.keys.workers()):
        logger.error(
            "the user of %s may not do what the engine needs: %s; allow it: ACL SETUSER <user> %s",
            uri,
            ", ".join(names),
            grant(names),
            extra={"event": "commands_denied", "commands": names},
        )


def warn_of_stranded(channel: Any, app: Any) -> None:
    """Warn of messages in Celery's own default queue when this app's workers do not consume it.

    An app that used it until now would leave what waits there behind.
    """
    if STOCK_QUEUE in app.amqp.queues:
        return
    if waiting := unless_denied(lambda: upstream.SIZE.of(channel)(STOCK_QUEUE)):
        logger.warning(
            "%d messages wait in queue %r, which is not in the queue table, so no worker of this "
            "app consumes it: add [queues.%s] to the table, at least until it is empty",
            waiting,
            STOCK_QUEUE,
            STOCK_QUEUE,
            extra={"event": "stranded", "waiting": waiting},
        )


def warn_of_multiplier(consumer: Any) -> None:
    """Warn of a prefetch multiplier that was set: here each queue has a prefetch of its own."""
    conf, multiplier = consumer.app.conf, consumer.prefetch_multiplier
    is_own = conf.value_set_for("worker_prefetch_multiplier")
    if is_own or multiplier != conf.worker_prefetch_multiplier:
        logger.warning(
            "worker_prefetch_multiplier is %s and has no effect: what a worker may hold is said "
            "for each queue, by `prefetch` in the queue table; with --disable-prefetch it holds "
            "what its slots run",
            multiplier,
            extra={"event": "prefetch_multiplier_ignored"},
        )


def prefetch_lack(prefetch: Prefetch, queue: str) -> str | None:
    """Return why the prefetch of a queue is too small for batches or slots, None when it is not."""
    count = prefetch.of(queue)
    needed, slots = prefetch.batch_needs.get(queue, 0), prefetch.slot_needs.get(queue, 0)
    if count < needed:
        return (
            f"queue {queue!r}: prefetch is {count}, and batches need {needed} to be full while all "
            "slots are busy: (slots + 1) times max_size, as what runs counts too; raise it, or "
            "leave it out"
        )
    if count < slots:
        return (
            f"queue {queue!r}: prefetch is {count}, and the queue may have {slots} slots of this "
            f"worker: {slots - count} of them never run anything of it, as what runs counts too; "
            f"raise prefetch, leave it out, or say limit = {count} if that is meant"
        )
    return None


def prefetch_line(prefetch: Prefetch, table: Topology, queues: list[str]) -> str:
    """Return the prefetch of each queue in one line, in the order of the table."""
    order = [name for name in table.queues if name in queues]
    order += [name for name in queues if name not in table.queues]
    return ", ".join(f"{name} {prefetch.of(name)}" for name in order)


def refuse_stock_redis(connection: Any) -> None:
    """Stop the worker when kombu's own transport serves a Redis broker: it bounds nothing.

    Raises:
        EngineError: the URL's scheme did not lead to the engine.
    """
    transport = connection.transport
    if transport.driver_type == "redis":
        raise EngineError(
            f"expected the transport of the Redis engine, got {type(transport).__qualname__} for "
            f"{connection.as_uri()}; remove broker_transport and name the broker by its URL"
        )
