"""Names of queues: which ones may be, and which others come with each."""

from __future__ import annotations

#: kombu's own keys: a queue of this name would overwrite them.
_KOMBU_KEYS = ("unacked", "unacked_index", "unacked_mutex")


_OWN_SUFFIXES = (".dead", ".dropped")


def name_problem(name: str) -> str | None:
    """Return why a queue cannot have this name, None when it can."""
    if not name:
        return "a queue needs a name, got an empty one"
    if not name.isprintable() or name != name.strip():
        return "a name has no control characters and no spaces at its ends"
    if "," in name:
        return "a name has no comma, which separates the queues of `worker -Q`"
    if name.endswith(_OWN_SUFFIXES):
        return "names that end in '.dead' or '.dropped' are kept for what a queue gave up"
    if name.startswith(("celeriac:", "_kombu.")) or name in _KOMBU_KEYS:
        return "this name belongs to a key of the broker's own"
    return None


def dead_queue(queue: str) -> str:
    """Return the name of the queue that keeps the dead letters of this one."""
    return f"{queue}.dead"


def dropped_queue(queue: str) -> str:
    """Return the name of the queue of what a bound dropped, until each has its final state."""
    return f"{queue}.dropped"


#: Where stock Celery sends what no route names.
STOCK_QUEUE = "celery"
