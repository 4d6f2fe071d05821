"""What one application has in one process: its queue table and its holdings, found again by name.

kombu builds channels from plain transport options; the name in them leads here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from routing.inflight.holdings import Holdings
from routing.topology.model import Topology
from routing.transport.schemes import is_engine_url

#: For connections that belong to no application: every queue is unknown to it.
NO_TABLE = Topology.model_construct(queues={}, routes={}, default_queue=None, lease_seconds=60.0)

_RUNTIMES: dict[str, Runtime] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The queue table of an application and what this process holds from its queues."""

    name: str
    topology: Topology
    holdings: Holdings


def create(name: str, topology: Topology) -> Runtime:
    """Create the runtime of this name, in the place of an earlier one."""
    runtime = Runtime(name=name, topology=topology, holdings=Holdings(topology))
    _RUNTIMES[name] = runtime
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
