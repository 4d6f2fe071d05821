"""The leases of what this process holds: who renews them, and until when they are known to hold."""

from __future__ import annotations

from typing import Protocol

from routing.redis.clocks import boot_seconds


class Keeper(Protocol):
    """What renews the leases of held messages."""

    #: Name of the worker, or of the process.
    hostname: str

    #: Whether it has said goodbye: nothing that runs is charged any more.
    leaving: bool

    def started(self, tag: str) -> None:
        """Note that a message's run begins; called from any thread, and often."""

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
