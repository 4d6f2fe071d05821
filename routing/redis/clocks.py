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
