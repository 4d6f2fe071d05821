"""Looks at a live platform: asks the broker and every worker, changes nothing.

A worker answers with `report` through remote control (``celery inspect checkup``); stock workers do
not know the command, which is how they are told apart. `look` puts all of it into a `Snapshot`.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from celery.worker.control import inspect_command

from routing import upstream
from routing.doctor.snapshot import Server, Snapshot, Unacked, WorkerReport
from routing.redis.ledger import read
from routing.redis.permissions import denied, unless_denied
from routing.redis.settings import read as read_settings
from routing.topology.model import Topology
from routing.topology.names import STOCK_QUEUE
from routing.transport.channel import EngineMixin
from routing.transport.runtime import topology_of

PACKAGES = ("celeriac", "celery", "kombu", "redis")

#: Seconds by which a lease or a delay may be late before it is nobody's: what a worker in good
#: health takes to look.
LATE_SECONDS = 10.0

#: Records read in one step: about a millisecond of the server.
SCAN_COUNT = 1000

#: kombu's default, in seconds.
VISIBILITY_SECONDS = 3600.0

#: The tag of a message that an engine fetched: fetcher, call, queue number, number.
_OUR_TAG = re.compile(r"[^:]+:\d+:\d+:\d+$")


def report(app: Any, channel: Any) -> dict[str, Any]:
    """Return what a worker says of itself, ready for JSON."""
    table = topology_of(app)
    is_engine = isinstance(channel, EngineMixin)
    return {
        "queues": list(app.amqp.queues.consume_from),
        "ahead_seconds": _ahead_seconds(channel) if is_engine else None,
        "table": digest(table) if table is not None else "",
        "lease_seconds": table.lease_seconds if table is not None else 0.0,
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


@inspect_command()
def checkup(state: Any) -> dict[str, Any]:
    """Show each worker's queues, versions, clock and table, as celery doctor compares them."""
    consumer = getattr(state.consumer, "task_consumer", None)
    return report(state.app, consumer.channel if consumer is not None else None)


def digest(table: Topology) -> str:
    """Return a short text that is alike for equal queue tables."""
    return hashlib.sha256(table.model_dump_json().encode()).hexdigest()[:12]


def look(app: Any, channel: EngineMixin, *, timeout_seconds: float) -> Snapshot:
    """Return the state of the platform that an app belongs to.

    Arguments:
        app: an app with a queue table.
        channel: a channel of the engine to its broker.
        timeout_seconds: how long to wait for the answers of workers.
    """
    table, client = channel.commands.topology, channel.plain_client
    return Snapshot(
        table=table,
        digest=digest(table),
        server=_server(client, channel.commands.keys.workers()),
        workers=_workers(app, timeout_seconds),
        unacked=_unacked(channel),
        ledger=read(client, channel.commands, recount=True),
        here_ahead_seconds=_ahead_seconds(channel),
        overdue=_overdue(channel),
        stranded=_stranded(app, channel),
        settings=read_settings(client, channel.commands.keys).queues,
        visibility_seconds=_visibility_seconds(channel),
    )


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "unknown"


def _ahead_seconds(channel: EngineMixin) -> float:
    """Return this machine's clock less the server's, as good as half a round trip."""
    before = time.time()
    server = _server_seconds(channel)
    return (before + time.time()) / 2 - server


def _server_seconds(channel: EngineMixin) -> float:
    client: Any = channel.plain_client
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


# -- the server


def _server(client: Any, key: str) -> Server:
    refused = denied(client, key)
    if (info := unless_denied(client.info)) is None:
        return Server(is_told=False, denied=refused)
    product = str(info.get("server_name") or "redis")
    return Server(
        product=product,
        version=str(info.get(f"{product}_version") or info.get("redis_version", "0")),
        role=str(info.get("role", "master")),
        is_cluster=bool(int(info.get("cluster_enabled", 0))),
        eviction=str(info.get("maxmemory_policy", "noeviction")),
        used_bytes=int(info.get("used_memory", 0)),
        max_bytes=int(info.get("maxmemory", 0)),
        machine_bytes=int(info.get("total_system_memory", 0)),
        appends=bool(int(info.get("aof_enabled", 0))),
        fsync=_setting(client, "appendfsync"),
        saves=_setting(client, "save"),
        write_failed=info.get("aof_last_write_status", "ok") != "ok",
        save_failed=info.get("rdb_last_bgsave_status", "ok") != "ok",
        denied=refused,
    )


def _setting(client: Any, name: str) -> str | None:
    """Return a setting of the server, None when it does not tell (managed servers)."""
    try:
        value = client.config_get(name).get(name)
    except Exception:
        return None
    return None if value is None else str(value)


# -- the workers


def _workers(app: Any, timeout_seconds: float) -> list[WorkerReport]:
    inspect = app.control.inspect(timeout=timeout_seconds)
    answers: Mapping[str, Any] = upstream.INSPECT_REQUEST.of(inspect)("checkup") or {}
    # A worker whose app has no table may know the command all the same, as its package is there.
    stock = [name for name, answer in answers.items() if not answer.get("table")]
    queues = _stock_queues(app, stock, timeout_seconds)
    return [
        WorkerReport(name=name, is_stock=True, queues=queues.get(name, ()))
        if name in stock
        else WorkerReport(name=name, **answer)
        for name, answer in sorted(answers.items())
    ]


def _stock_queues(app: Any, names: list[str], timeout_seconds: float) -> dict[str, list[str]]:
    if not names:
        return {}
    inspect = app.control.inspect(names, timeout=timeout_seconds, limit=len(names))
    answers = inspect.active_queues() or {}
    return {name: [queue["name"] for queue in queues] for name, queues in answers.items()}


# -- messages


def _unacked(channel: EngineMixin) -> Unacked:
    client: Any = channel.plain_client
    records, index, leases, *_ = channel.commands.keys.records()
    now = _server_seconds(channel)
    expiries = dict(client.zscan_iter(leases, count=SCAN_COUNT))
    late_ms = (now - LATE_SECONDS) * 1000
    ours: list[bytes] = []
    stock: list[bytes] = []
    for tag, _ in client.hscan_iter(records, count=SCAN_COUNT):
        (ours if _OUR_TAG.match(tag.decode()) else stock).append(tag)
    expired = sum(1 for tag in ours if expiries.get(tag, late_ms) < late_ms)
    unleased = _still_unleased(client, records, leases, [t for t in ours if t not in expiries])
    overdue_before = now - _visibility_seconds(channel) - LATE_SECONDS
    overdue = int(client.zcount(index, "-inf", overdue_before)) if stock else 0
    return Unacked(
        leased=len(ours) - expired - unleased,
        expired=expired,
        unleased=unleased,
        stock=len(stock),
        stock_overdue=min(overdue, len(stock)),
        holders=_holders(channel, expiries, late_ms),
    )


def _still_unleased(client: Any, records: str, leases: str, tags: list[bytes]) -> int:
    """Return how many records have no lease: the scans saw different moments."""
    found: int = 0
    for start in range(0, len(tags), SCAN_COUNT):
        chunk = tags[start : start + SCAN_COUNT]
        pipeline = client.pipeline()
        pipeline.zmscore(leases, chunk)
        pipeline.hmget(records, chunk)
        scores, payloads = pipeline.execute()
        found += [s is None and t is not None for s, t in zip(scores, payloads, strict=True)].count(
            True
        )
    return found


def _holders(
    channel: EngineMixin, expiries: Mapping[bytes, float], late_ms: float
) -> dict[str, int]:
    """Return how many messages each worker holds under leases, by the workers' host names."""
    fetchers = Counter(tag.split(b":")[0] for tag, expiry in expiries.items() if expiry >= late_ms)
    if not fetchers:
        return {}
    names: Any = channel.plain_client.hmget(channel.commands.keys.workers(), list(fetchers))
    held: Counter[str] = Counter()
    for name, count in zip(names, fetchers.values(), strict=True):
        if name:
            held[name.decode()] += count
    return dict(held)


def _overdue(channel: EngineMixin) -> dict[str, int]:
    late_ms = (_server_seconds(channel) - LATE_SECONDS) * 1000
    commands = channel.commands
    client: Any = channel.plain_client
    late = {
        queue: int(client.zcount(commands.keys.delayed(queue), "-inf", late_ms))
        for queue in commands.topology.queues
    }
    return {queue: count for queue, count in late.items() if count}


def _stranded(app: Any, channel: Any) -> dict[str, int]:
    if STOCK_QUEUE in app.amqp.queues:
        return {}
    waiting = unless_denied(lambda: int(upstream.SIZE.of(channel)(STOCK_QUEUE)))
    return {STOCK_QUEUE: waiting} if waiting else {}


def _visibility_seconds(channel: EngineMixin) -> float:
    options = channel.connection.client.transport_options
    return float(options.get("visibility_timeout") or VISIBILITY_SECONDS)
