"""What waits for its batch: one window per group, in order of arrival.

Pure: no clock and no I/O. The strategy adds entries, tells the time and hands on what comes out.
The buffer is bounded by the credit of the queues that feed it: it never holds more than was
delivered. A group is whatever must not mix in one call: queue, key, and the time limits of the
message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from batching.policy import Flush, Limits, Reason, decide, fits, is_full

E = TypeVar("E")
G = TypeVar("G", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Packed(Generic[G, E]):
    """Entries that go out together, in order, and why now."""

    group: G
    entries: list[E]
    reason: Reason


@dataclass(slots=True)
class _Window(Generic[E]):
    oldest_at: float
    entries: list[E] = field(default_factory=list)
    count: int = 0
    size_bytes: int = 0


class Buffer(Generic[G, E]):
    """Entries on their way into batches; everything that was added comes out once, in order."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # Ordered by the age of the oldest entry: a window is made with its first entry.
        self._windows: dict[G, _Window[E]] = {}

    def __len__(self) -> int:
        return sum(len(window.entries) for window in self._windows.values())

    def __bool__(self) -> bool:
        return bool(self._windows)

    def sizes(self) -> Iterator[tuple[G, int]]:
        """Yield each group that waits, with the number of its entries."""
        for group, window in self._windows.items():
            yield group, len(window.entries)

    def add(self, entry: E, group: G, *, size_bytes: int, now: float) -> list[Packed[G, E]]:
        """Take an entry; the result is what must go now because a bound was reached."""
        packed: list[Packed[G, E]] = []
        window = self._windows.get(group)
        if window is not None and not fits(self.limits, window, size_bytes):
            packed.append(self._take(group, Reason.BYTES))
            window = None
        if window is None:
            window = self._windows[group] = _Window(now)
        window.entries.append(entry)
        window.count += 1
        window.size_bytes += size_bytes
        full = is_full(self.limits, window)
        if full is not None:
            packed.append(self._take(group, full))
        return packed

    def next_due(
        self, now: float, *, idle: Callable[[G], bool], backlog: Callable[[G], bool]
    ) -> Packed[G, E] | None:
        """The oldest window that may go now, if any.

        One at a time, because each takes a slot and so changes whether another one is idle.
        """
        for group, window in self._windows.items():
            is_idle = idle(group)
            more = is_idle and backlog(group)
            decision = decide(self.limits, window, now, idle=is_idle, backlog=more)
            if isinstance(decision, Flush):
                return self._take(group, decision.reason)
        return None

    def deadline(self) -> float | None:
        """When the oldest entry will have waited long enough; None when nothing waits."""
        for window in self._windows.values():
            return window.oldest_at + self.limits.max_wait_seconds
        return None

    def clear(self) -> list[E]:
        """Forget everything; what was held is returned in order of arrival within each group."""
        entries = [entry for window in self._windows.values() for entry in window.entries]
        self._windows.clear()
        return entries

    def _take(self, group: G, reason: Reason) -> Packed[G, E]:
        return Packed(group, self._windows.pop(group).entries, reason)
