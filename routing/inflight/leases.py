"""The leases of what this process holds: who renews them, and until when they are known to hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from routing.redis.clocks import boot_seconds


class Keeper(Protocol):
    """What renews the leases of held messages."""

    #: Name of the worker, or of the process.
    hostname: str

    #: Whether it has said goodbye: nothing that runs is charged any more.
    leaving: bool

    def started(self, tags: Iterable[str]) -> None:
        """Note that runs of messages begin; called from any thread, and often."""

    def watch(self) -> None:
        """Watch for a moment what waits, or is owed; called from any thread, and often."""

    def leave(self) -> None:
        """Tell the broker at once that this worker stops; called in a signal handler too."""

    def check_now(self) -> None:
        """Find out at once what is still held; nothing may start before that is known."""

    def stop(self) -> None:
        """End soon, but not before what is just carried to the broker has arrived."""


class LeaseGuard:
    """Until when everything that is held is known to be held.

    Past it nothing may be started: another worker may have it. It moves on with each pass of
    renewals that the broker has confirmed.
    """

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def holds(self) -> bool:
        """Whether what is held may be started now."""
        return boot_seconds() < self._until

    @property
    def seconds_left(self) -> float:
        """How long it still holds; negative since it no longer does."""
        return self._until - boot_seconds()

    def confirm(self, until: float) -> None:
        """Note that everything held was renewed, until this time of `boot_seconds`."""
        self._until = max(self._until, until)

    def drop(self) -> None:
        """Distrust what is held, until the next confirmation."""
        self._until = 0.0


class Kept:
    """What a job of the upkeep has taken: renewed as all else that is held, and counted nowhere.

    Also asked and changed by the thread that renews: each step is one of the set's own.
    """

    def __init__(self) -> None:
        self._tags: set[str] = set()

    @contextmanager
    def keep(self, tags: Sequence[str]) -> Iterator[None]:
        """Have the leases of these messages renewed within."""
        self._tags.update(tags)
        try:
            yield
        finally:
            self._tags.difference_update(tags)

    def tags(self) -> list[str]:
        """Return what is kept."""
        return list(self._tags)

    def has(self, tag: str) -> bool:
        """Return whether a message is still kept; if not, another worker has it."""
        return tag in self._tags

    def forget(self, tags: Iterable[str]) -> None:
        """Note that these are another worker's now."""
        self._tags.difference_update(tags)
