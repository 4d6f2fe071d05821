"""What goes out together, and the windows in which that gathers, by how much they hold. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from batching.consumer.flush import FlushReason

E = TypeVar("E")
G = TypeVar("G", bound=Hashable)


@dataclass(slots=True, eq=False)
class Window(Generic[G, E]):
    """Entries that go out together, in order.

    Attributes:
        due_at: when it gets its turn at the latest.
        reason: why it was given its turn; None while it has none.
        turned_at: when it was.
        reopened: why it had its turn before it left that, for more of its items; None if it never
            did.
        awaits_start: whether it waits for the rate of its task.
        has_start: whether its call may begin, as far as that rate goes.
        is_part: whether it is a slot's part of a batch that was shared out.
    """

    group: G
    due_at: float
    reason: FlushReason | None = None
    turned_at: float = 0.0
    reopened: FlushReason | None = None
    awaits_start: bool = False
    has_start: bool = False
    is_part: bool = False
    entries: list[E] = field(default_factory=list)
    count: int = 0
    size_bytes: int = 0
    cost: float = 0.0
    #: The windows among which it waits.
    among: Sizes[G, E] | None = None


class Sizes(Generic[G, E]):
    """Windows in the order in which they came, and by how much they hold."""

    def __init__(self) -> None:
        #: Each with the count by which it is sorted.
        self._counts: dict[Window[G, E], int] = {}
        self._by_count: dict[int, dict[Window[G, E], None]] = {}
        #: Those that hold more or less since; they are sorted when somebody asks.
        self._changed: dict[Window[G, E], None] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[Window[G, E]]:
        return iter(tuple(self._counts))

    def put(self, window: Window[G, E]) -> None:
        """Add a window."""
        window.among = self
        self._counts[window] = window.count
        self._by_count.setdefault(window.count, {})[window] = None

    def change(self, window: Window[G, E]) -> None:
        """Note that a window of these holds more or less now."""
        self._changed[window] = None

    def remove(self, window: Window[G, E]) -> None:
        """Remove a window, which need not be there."""
        if window in self._counts:
            window.among = None
            self._changed.pop(window, None)
            self._uncount(window)
            del self._counts[window]

    def _uncount(self, window: Window[G, E]) -> None:
        count = self._counts[window]
        alike = self._by_count[count]
        del alike[window]
        if not alike:
            del self._by_count[count]

    @property
    def oldest(self) -> Window[G, E]:
        """The first that came."""
        return next(iter(self._counts))

    @property
    def fullest(self) -> Window[G, E]:
        """The one that holds most, and of several the first."""
        for window in self._changed:
            self._uncount(window)
            self.put(window)
        self._changed.clear()
        return next(iter(self._by_count[max(self._by_count)]))
