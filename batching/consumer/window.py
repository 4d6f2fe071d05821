"""What waits for its batch: one open window per group, in order of arrival.

Pure: no clock and no I/O. The intake adds entries, tells the time, and gives what comes out its
turn for a slot. A window with a turn stays open: later entries of its group join it until it is
full, or until a slot takes it. So batches grow while slots are busy, and one that waits costs its
entries nothing. The buffer is bounded by the credit of the queues that feed it: it never holds more
than was delivered. A group is whatever must not mix in one call: queue, key, and the time limits
of the message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

E = TypeVar("E")
G = TypeVar("G", bound=Hashable)


@dataclass(slots=True, eq=False)
class Window(Generic[G, E]):
    """Entries that go out together, in order.

    Attributes:
        due_at: when it gets its turn at the latest.
        reason: why it was given its turn; None while it has none.
        reopened: whether it had its turn before, and left it to a fuller batch.
    """

    group: G
    due_at: float
    reason: FlushReason | None = None
    reopened: bool = False
    entries: list[E] = field(default_factory=list)
    count: int = 0
    size_bytes: int = 0


class Buffer(Generic[G, E]):
    """Entries on their way into batches; everything that was added comes out once, in order."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # At most one for each group.
        self._open: dict[G, Window[G, E]] = {}
        # Those of them without a turn, both in the order of when they are due: a window is made
        # with its first entry.
        self._gathering: dict[G, Window[G, E]] = {}
        self._reopened: dict[G, Window[G, E]] = {}

    def __len__(self) -> int:
        return sum(len(window.entries) for window in self._open.values())

    def sizes(self) -> Iterator[tuple[G, int]]:
        """Yield each group whose next batch is open, with the number of its entries."""
        for group, window in self._open.items():
            yield group, len(window.entries)

    def add(self, entry: E, group: G, *, size_bytes: int, now: float) -> list[Window[G, E]]:
        """Take an entry; the result is what gets its turn now because a bound was reached."""
        turns: list[Window[G, E]] = []
        window = self._open.get(group)
        if window is not None and not fits(self.limits, window, size_bytes):
            self._fill(window, FlushReason.BYTES, turns)
            window = None
        if window is None:
            window = Window(group, now + self.limits.max_wait_seconds)
            self._open[group] = self._gathering[group] = window
        window.entries.append(entry)
        window.count += 1
        window.size_bytes += size_bytes
        full = is_full(self.limits, window)
        if full is not None:
            self._fill(window, full, turns)
        return turns

    def next_due(
        self, now: float, *, idle: Callable[[G], bool], backlog: Callable[[G], bool]
    ) -> Window[G, E] | None:
        """The oldest window without a turn that gets one now, if any.

        One at a time, because each takes a slot and so changes whether another one is idle.
        """
        for group, window in chain(self._reopened.items(), self._gathering.items()):
            is_idle = idle(group)
            more = is_idle and backlog(group)
            decision = decide_flush(self.limits, window, now, idle=is_idle, backlog=more)
            if isinstance(decision, Flush):
                self._stop_gathering(group)
                window.reason = decision.reason
                return window
        return None

    def deadline(self) -> float | None:
        """When the next window is due for its turn; None when all that wait have theirs."""
        if not self._open:
            return None
        firsts = (next(iter(some.values()), None) for some in (self._reopened, self._gathering))
        return min((window.due_at for window in firsts if window is not None), default=None)

    def reopen(self, window: Window[G, E], *, until: float) -> bool:
        """Let a window wait for more once again, until then at most; False when it must go.

        It must go when it is full, and the second time.
        """
        if window.reopened or self._open.get(window.group) is not window:
            return False
        window.reopened, window.reason, window.due_at = True, None, until
        self._reopened[window.group] = window
        return True

    def close(self, window: Window[G, E]) -> list[E]:
        """Return a window's entries for good, as a slot takes them; closing twice is safe."""
        if self._open.get(window.group) is window:
            self._forget(window)
        return window.entries

    def drop(self, is_lost: Callable[[E], bool], size_of: Callable[[E], int]) -> None:
        """Forget the entries that are lost; a window that had nothing else is closed."""
        for window in list(self._open.values()):
            kept = [entry for entry in window.entries if not is_lost(entry)]
            if len(kept) == len(window.entries):
                continue
            window.entries[:] = kept  # its unit has the same list
            window.count, window.size_bytes = len(kept), sum(map(size_of, kept))
            if not kept:
                self._forget(window)

    def withdraw(self) -> list[E]:
        """Take out what is open, as it has to wait elsewhere; a turn that it had is void."""
        windows = list(self._open.values())
        entries = self.clear()
        for window in windows:
            window.entries.clear()
        return entries

    def clear(self) -> list[E]:
        """Forget what is open; what was held is returned in order of arrival within each group."""
        entries = [entry for window in self._open.values() for entry in window.entries]
        self._open.clear()
        self._gathering.clear()
        self._reopened.clear()
        return entries

    def _fill(self, window: Window[G, E], reason: FlushReason, turns: list[Window[G, E]]) -> None:
        """Let nothing more join; a window that had no turn gets it."""
        self._forget(window)
        if window.reason is None:
            window.reason = reason
            turns.append(window)

    def _forget(self, window: Window[G, E]) -> None:
        del self._open[window.group]
        self._stop_gathering(window.group)

    def _stop_gathering(self, group: G) -> None:
        self._gathering.pop(group, None)
        self._reopened.pop(group, None)


class FlushReason(StrEnum):
    """Why a batch was flushed."""

    COUNT = "count"  # it holds max_size items
    BYTES = "bytes"  # the next item would take it over max_bytes
    WAIT = "wait"  # its oldest item has waited max_wait
    IDLE = "idle"  # a slot is free and nothing more is on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one task's batches."""

    max_size: int
    max_bytes: int | None
    max_wait_seconds: float


class Gathered(Protocol):
    """What waits for one batch."""

    @property
    def count(self) -> int:
        """How many items."""

    @property
    def size_bytes(self) -> int:
        """How many bytes of bodies."""

    @property
    def due_at(self) -> float:
        """Until when it may wait for more."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Flush what is held, now."""

    reason: FlushReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold on, and ask again at this time at the latest."""

    until: float


Decision: TypeAlias = Flush | Wait


def fits(limits: Limits, gathered: Gathered, size_bytes: int) -> bool:
    """Whether one more item of `size_bytes` may join; an item too big for any batch goes alone."""
    if gathered.count >= limits.max_size:
        return False
    if limits.max_bytes is None or gathered.count == 0:
        return True
    return gathered.size_bytes + size_bytes <= limits.max_bytes


def is_full(limits: Limits, gathered: Gathered) -> FlushReason | None:
    """The bound that was reached, when nothing more can join."""
    if gathered.count >= limits.max_size:
        return FlushReason.COUNT
    if limits.max_bytes is not None and gathered.size_bytes >= limits.max_bytes:
        return FlushReason.BYTES
    return None


def decide_flush(
    limits: Limits, gathered: Gathered, now: float, *, idle: bool, backlog: bool
) -> Decision:
    """Whether what is gathered goes now.

    `idle`: a slot is free. `backlog`: the broker is known to hold more, or more is being delivered,
    so that a moment's patience makes a fuller batch.
    """
    full = is_full(limits, gathered)
    if full is not None:
        return Flush(full)
    if now >= gathered.due_at:
        return Flush(FlushReason.WAIT)
    if idle and not backlog:
        return Flush(FlushReason.IDLE)
    return Wait(gathered.due_at)


def limits_of(task: Any) -> Limits:
    """Return the bounds of a task's batches."""
    return Limits(
        max_size=task.max_size, max_bytes=task.max_bytes, max_wait_seconds=float(task.max_wait)
    )
