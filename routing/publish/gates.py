"""Which gate a call is for: the producer says so, as only it has the arguments unpacked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from routing.message.gate import HEADER
from routing.topology.limits import key_value, mark_of
from routing.topology.model import Topology
from routing.transport.runtime import is_engine_connection, topology_of

#: Returns the mark of a call's gate, from its arguments.
Marker: TypeAlias = Callable[[Sequence[Any], Mapping[str, Any]], str]


def marker_for(app: Any, task_name: str) -> Marker | None:
    """Return what marks the calls of a task; None when nothing limits it."""
    topology: Topology | None = topology_of(app)
    if topology is None or (found := topology.limit_for(task_name)) is None:
        return None
    name, limit = found
    if (key := limit.key) is None:
        return lambda args, kwargs: name
    parameters = _parameters(getattr(app.tasks.get(task_name), "run", None))

    def mark(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        return mark_of(name, key_value(key, args or (), kwargs or {}, parameters))

    return mark


def note_gate(app: Any, connection: Any, task_name: str, message: Any) -> None:
    """Note on a task message, as Celery has made it, which gate it is for."""
    topology = topology_of(app)
    if topology is None or not topology.limits or not is_engine_connection(connection):
        return
    if (mark := marker_for(app, task_name)) is None:
        return
    body = message.body
    if isinstance(body, Mapping):  # protocol 1
        args, kwargs = body.get("args"), body.get("kwargs")
    else:
        args, kwargs, *_ = body
    message.headers[HEADER] = mark(args or (), kwargs or {})


@lru_cache(maxsize=1024)
def _parameters(run: Any) -> Sequence[str]:
    """Return the names of what may be passed by position, none for what cannot be looked at."""
    try:
        found = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(one.name for one in found if one.kind in kinds)
