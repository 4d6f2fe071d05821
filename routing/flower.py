"""Dead letters in Flower: its broker page and its API show ``<queue>.dead`` beside each queue.

Flower asks the workers which queues they consume, and none consumes dead letters. So the one method
that names the queues is extended, in a process that has Flower loaded, as ``celery flower`` has.
Nothing is imported for it.
"""

from __future__ import annotations

import sys
from typing import Any

from routing.topology.names import dead_queue
from routing.transport.runtime import topology_of


def show_dead_letters() -> None:
    """Extend Flower where it is loaded; calling it again changes nothing."""
    views = sys.modules.get("flower.views")
    handler = getattr(views, "BaseHandler", None)
    stock = getattr(handler, "get_active_queue_names", None)
    if handler is None or stock is None or hasattr(stock, "__wrapped__"):
        return

    def get_active_queue_names(self: Any) -> list[str]:
        return with_dead_queues(stock(self), self.application.capp)

    get_active_queue_names.__wrapped__ = stock  # type: ignore[attr-defined]
    handler.get_active_queue_names = get_active_queue_names


def with_dead_queues(names: list[str], app: Any) -> list[str]:
    """Return these queue names, and the dead letters of those in an app's queue table."""
    table = topology_of(app)
    dead = [dead_queue(name) for name in names if table is not None and name in table]
    return sorted({*names, *dead})
