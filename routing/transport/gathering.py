"""Messages that must be published together: kept until all of them are there.

While a group or a chord is being published (`routing.publish.groups`), channels put its messages
here instead of pushing them one by one; so they do with what the items of a batch send, until the
states of all of them are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from celery import current_task

from routing.message.eta import Delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What messages share that travel in one call."""

    queue: str
    #: kombu's priority step.
    priority: int = 0
    #: No bound refuses them: see `routing.message.exemption`.
    exempt: bool = False
    #: The messages are delayed: each travels as a `Delay`.
    delayed: bool = False


@dataclass(slots=True)
class Gathering:
    """Messages of one publication, by destination, in the order in which they were made."""

    destinations: dict[Destination, list[str | Delay]] = field(default_factory=dict)
    #: The id of the task that has sent each message of a destination, "" outside of any.
    senders: dict[Destination, list[str]] = field(default_factory=dict)
    #: Keep only what no bound can refuse.
    exempt_only: bool = False

    def takes(self, destination: Destination) -> bool:
        """Return whether messages of a destination are kept here."""
        return destination.exempt or not self.exempt_only

    def add(self, destination: Destination, payload: str | Delay) -> None:
        """Keep a message."""
        self.destinations.setdefault(destination, []).append(payload)
        sender = (current_task.request.id or "") if current_task else ""
        self.senders.setdefault(destination, []).append(sender)


_CURRENT: ContextVar[Gathering | None] = ContextVar("celeriac_gathering", default=None)


def current() -> Gathering | None:
    """Return where this context's messages are gathered, None when they are pushed at once."""
    return _CURRENT.get()


@contextmanager
def gathering(*, exempt_only: bool = False) -> Iterator[Gathering]:
    """Gather what this context publishes meanwhile."""
    gathered = Gathering(exempt_only=exempt_only)
    token = _CURRENT.set(gathered)
    try:
        yield gathered
    finally:
        _CURRENT.reset(token)
