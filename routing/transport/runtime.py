"""What one application has in one process: its queue table and its holdings, found again by name.

kombu builds channels from plain transport options; the name in them leads here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from routing.inflight.forks import in_children
from routing.inflight.holdings import Holdings
from routing.inflight.prefetch import Prefetch
from routing.redis import settings
from routing.redis.commands import Commands
from routing.topology.live import Change, LiveTable
from routing.topology.model import Topology
from routing.transport.schemes import is_engine_url

#: For connections that belong to no application: every queue is unknown to it.
NO_TABLE = Topology.model_construct(queues={}, routes={}, default_queue=None, lease_seconds=60.0)

_RUNTIMES: dict[str, Runtime] = {}


class Database(NamedTuple):
    """A broker database, however many servers may have it in turn."""

    servers: tuple[str, ...]
    name: str
    prefix: str


def database_of(client: Any, *, prefix: str) -> Database:
    """Return the database of a kombu connection.

    Arguments:
        client: the connection, whose alternates are the same database on other servers.
        prefix: kombu's ``global_keyprefix``.
    """
    servers = tuple(client.alt) or (f"{client.hostname}:{client.port or ''}",)
    return Database(servers, str(client.virtual_host or "").strip("/") or "0", prefix)


class Runtime:
    """The queue table of an application, and what this process holds from its queues.

    Arguments:
        name: what channels find it by.
        topology: the table.
    """

    def __init__(self, name: str, topology: Topology) -> None:
        self.name = name
        self.topology = topology
        #: The table, with what was set since; current in workers.
        self.live = LiveTable(topology)
        self.live.listeners.append(self._follow)
        #: The prefetch of each queue in this process.
        self.prefetch = Prefetch(self.live)
        #: Whether this is a worker's own process, whose event loop must not wait.
        self.is_worker = False
        self._holdings: dict[Database, Holdings] = {}
        in_children(self._leave_to_the_parent)

    def holdings_of(self, database: Database) -> Holdings:
        """Return what this process holds from a database."""
        if (known := self._holdings.get(database)) is not None:
            return known
        # Another thread may be the first one, too.
        return self._holdings.setdefault(database, Holdings(self.topology, self.prefetch))

    def refresh(self, commands: Commands, client: redis.Redis) -> None:
        """Read the settings of the queues, and let them hold."""
        stored = settings.read(client, commands.keys)
        self.live.apply(stored.version, stored.queues)

    def _follow(self, change: Change) -> None:
        if "prefetch" in change.fields:
            self.prefetch.reset(change.queue)  # whatever this process was told before

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return held and prefetch of every queue of the table or with something held."""
        total: dict[str, dict[str, int]] = {
            queue: {"held": 0, "prefetch": self.prefetch.of(queue)}
            for queue in self.topology.queues
        }
        for holdings in list(self._holdings.values()):
            for queue in holdings.credit.queues():
                shown = total.setdefault(queue, {"held": 0, "prefetch": self.prefetch.of(queue)})
                shown["held"] += holdings.credit.held(queue)
        return total

    def _leave_to_the_parent(self) -> None:
        self.is_worker = False


def create(name: str, topology: Topology) -> Runtime:
    """Create the runtime of this name, in the place of an earlier one."""
    runtime = _RUNTIMES[name] = Runtime(name, topology)
    return runtime


def lookup(name: str | None) -> Runtime:
    """Return the runtime of this name; one with an empty table when there is none."""
    key = name or ""
    return _RUNTIMES.get(key) or create(key, NO_TABLE)


def topology_of(app: Any) -> Topology | None:
    """Return the queue table that was installed on an app, None when there is none."""
    return getattr(app.amqp_cls, "topology", None)


def is_engine_connection(connection: Any) -> bool:
    """Return whether a connection leads to the engine, without opening it."""
    name = connection.transport_cls
    return isinstance(name, str) and is_engine_url(f"{name}://")
