"""The clocks that decide: one that goes on while the machine sleeps, and the server's.

No worker's own wall clock decides what is due, expired or too old.
"""

from __future__ import annotations

import time

_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def boot_seconds() -> float:
    """Return a time that never jumps and goes on in a suspended machine, where there is one."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


class ServerClock:
    """The server's time, kept from the last reply that told it."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    def learn(self, server_ms: int) -> None:
        """Note what time it is there."""
        self._offset_ms = server_ms - boot_seconds() * 1000

    def now_ms(self) -> float:
        """Return what time it is there; 0 before anything was learned."""
        return self._offset_ms + boot_seconds() * 1000 if self._offset_ms else 0.0


class Fence:
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
