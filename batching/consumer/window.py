"""What waits for its batch: one open window per group, in order of arrival.

Pure: no clock and no I/O. The intake adds entries, tells the time, and gives what comes out its
turn for a slot. A window with a turn stays open: later entries of its group join it until it is
full, or until a slot takes it. So batches grow while slots are busy, and one that waits costs its
entries nothing. The slot takes the fullest, unless one has had its turn for too long: with many
groups, turns come in the order of their first entries, and those that were filled meanwhile are
worth more. The buffer is bounded by the credit of the queues that feed it: it never holds more than
was delivered. A group is whatever must not mix in one call: queue, key, and the time limits of the
message.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import accumulate, chain, pairwise
from typing import Generic

from batching.consumer.flush import (
    AT_ONCE,
    Flush,
    FlushReason,
    Limits,
    decide_flush,
    exceeded,
    is_full,
)
from batching.consumer.sizes import E, G, Sizes, Window


class _Line(Generic[G, E]):
    """The windows that wait for the same slots."""

    def __init__(self) -> None:
        #: Those without a turn, which are due in this order: each is made with its first entry.
        self.gathering: Sizes[G, E] = Sizes()
        #: Those that are due before: an item expires, or they left their turns to fuller ones.
        self.early: dict[G, Window[G, E]] = {}
        #: Those whose turn has come.
        self.turns: Sizes[G, E] = Sizes()
        #: Those of them that have the next slot, whoever waited for it.
        self.first: dict[Window[G, E], None] = {}


class Buffer(Generic[G, E]):
    """Entries on their way into batches; everything that was added comes out once, in order.

    Arguments:
        limits: the bounds of a batch.
        line_of: returns what the groups have in common that wait for the same slots.
    """

    def __init__(self, limits: Limits, line_of: Callable[[G], Hashable] = lambda group: group):
        self.limits = limits
        self._line_of = line_of
        #: At most one for each group.
        self._open: dict[G, Window[G, E]] = {}
        self._lines: dict[Hashable, _Line[G, E]] = {}

    def __len__(self) -> int:
        return sum(len(window.entries) for window in self._open.values())

    def sizes(self) -> Iterator[tuple[G, int]]:
        """Yield each group whose next batch is open, with the number of its entries."""
        for group, window in self._open.items():
            yield group, len(window.entries)

    def awaits_start(self, group: G) -> bool:
        """Return whether the open batch of a group waits for the rate of its task."""
        window = self._open.get(group)
        return window is not None and window.awaits_start

    def add(
        self,
        entry: E,
        group: G,
        *,
        size_bytes: int,
        now: float,
        cost: float = 0.0,
        due_at: float | None = None,
        at_once: FlushReason | None = None,
    ) -> list[Window[G, E]]:
        """Take an entry.

        Arguments:
            entry: it.
            group: what it has in common with others.
            size_bytes: its size.
            now: the time.
            cost: what it costs.
            due_at: when it must have its turn, if that may be before `max_wait` is over.
            at_once: why its batch gets its turn at once; None where it may wait.

        Returns:
            What gets its turn now.
        """
        turns: list[Window[G, E]] = []
        window = self._open.get(group)
        if window is not None:
            over = exceeded(self.limits, window, size_bytes, cost)
            if over is not None:
                self._fill(window, over, turns)
                window = None
        if window is None:
            window = Window(group, now + self.limits.max_wait_seconds)
            self._open[group] = window
            if at_once is None:
                self._gather(window, turns)
        window.entries.append(entry)
        window.count += 1
        window.size_bytes += size_bytes
        window.cost += cost
        if window.among is not None:
            window.among.change(window)
        full = is_full(self.limits, window)
        if full is not None:
            self._fill(window, full, turns)
        elif window.reason is None:
            if at_once is not None:
                self._turn(window, at_once, turns)
            elif due_at is not None and due_at < window.due_at:
                window.due_at = due_at
                self._line(group).early[group] = window
        return turns

    def _gather(self, window: Window[G, E], turns: list[Window[G, E]]) -> None:
        """Let a new window wait for more; where too many do, the fullest gets its turn."""
        gathering = self._line(window.group).gathering
        most = self.limits.max_open_keys
        if most is not None and len(gathering) >= most:
            self._turn(gathering.fullest, FlushReason.KEYS, turns)
        gathering.put(window)

    def next_due(
        self, now: float, *, idle: Callable[[G], int], backlog: Callable[[G], bool]
    ) -> Window[G, E] | None:
        """A window without a turn that gets one now, if any: the oldest, or the fullest that may.

        One at a time, because each takes a slot and so changes whether another one is idle.
        """
        for line in self._lines.values():
            first = [line.gathering.oldest] if line.gathering else []
            if first and self.limits.min_size > 1:
                first.append(line.gathering.fullest)
            for window in chain(line.early.values(), first):
                is_idle = idle(window.group) > 0
                more = is_idle and backlog(window.group)
                decision = decide_flush(self.limits, window, now, idle=is_idle, backlog=more)
                if not isinstance(decision, Flush):
                    continue
                is_early = decision.reason is FlushReason.IDLE and window.among is line.gathering
                chosen = line.gathering.fullest if is_early else window
                self._stop_gathering(chosen)
                chosen.reason = chosen.reopened or decision.reason
                return chosen
        return None

    def deadline(self) -> float | None:
        """When the next window is due for its turn; None when all that wait have theirs."""
        due = [
            window.due_at
            for line in self._lines.values()
            for window in (
                *line.early.values(),
                *([line.gathering.oldest] if line.gathering else []),
            )
        ]
        return min(due, default=None)

    def has_turn(self, window: Window[G, E], now: float) -> None:
        """Note that a window waits for nothing but a slot."""
        window.turned_at = now
        line = self._line(window.group)
        line.turns.put(window)
        if window.reason in AT_ONCE:
            line.first[window] = None

    def choose(self, window: Window[G, E], now: float) -> Window[G, E]:
        """Return which of those that wait as this one does is to have its slot.

        That is the fullest, but for what is urgent, and for one that has waited for its slot as
        long as for its turn.
        """
        line = self._line(window.group)
        turns = line.turns
        if window.among is not turns:
            return window
        if line.first:
            return next(iter(line.first))
        oldest = turns.oldest
        waited = now - oldest.turned_at
        return oldest if waited > self.limits.max_wait_seconds else turns.fullest

    def reopen(self, window: Window[G, E], *, until: float) -> bool:
        """Let a window wait for more once again, until then at most; False when it must go.

        It must go when it is full, at once where it is to, and the second time.
        """
        has_to = window.reason in AT_ONCE or window.reopened is not None
        if has_to or self._open.get(window.group) is not window:
            return False
        window.reopened, window.reason, window.due_at = window.reason, None, until
        line = self._line(window.group)
        self._take_turn(window)
        line.early[window.group] = window
        return True

    def split(self, window: Window[G, E], parts: int, now: float) -> list[Window[G, E]]:
        """Leave a window its first entries, and return others of the rest, which nothing joins.

        Arguments:
            window: which goes now.
            parts: how many there are to be with it, as alike as can be.
            now: the time.
        """
        size, more = divmod(len(window.entries), parts)
        ends = list(accumulate(size + (number < more) for number in range(parts)))
        split = [self._part(window, window.entries[a:b], now) for a, b in pairwise(ends)]
        del window.entries[ends[0] :]
        return split

    def _part(self, window: Window[G, E], entries: list[E], now: float) -> Window[G, E]:
        return Window(
            window.group, now, window.reason, is_part=True, entries=entries, count=len(entries)
        )

    def close(self, window: Window[G, E]) -> list[E]:
        """Return a window's entries for good, as a slot takes them; closing twice is safe."""
        if self._open.get(window.group) is window:
            self._forget(window)
        self._take_turn(window)
        return window.entries

    def drop(
        self, is_lost: Callable[[E], bool], weight_of: Callable[[E], tuple[int, float]]
    ) -> list[Window[G, E]]:
        """Forget the entries that are lost; returns the windows that had nothing else.

        Those that are full wait for their slots as well.

        Arguments:
            is_lost: says whether an entry is.
            weight_of: returns the bytes of an entry, and its cost.
        """
        turns = (window for line in self._lines.values() for window in line.turns)
        closed = []
        for window in {id(one): one for one in (*self._open.values(), *turns)}.values():
            kept = [entry for entry in window.entries if not is_lost(entry)]
            if len(kept) == len(window.entries):
                continue
            window.entries[:] = kept  # its unit has the same list
            weights = [weight_of(entry) for entry in kept]
            window.count, window.size_bytes = len(kept), sum(size for size, _ in weights)
            window.cost = sum(cost for _, cost in weights)
            if window.among is not None:
                window.among.change(window)
            if not kept:
                self.close(window)
                closed.append(window)
        return closed

    def withdraw(self) -> list[E]:
        """Take out what is open, as it has to wait elsewhere; a turn that it had is void."""
        windows = list(self._open.values())
        entries = [entry for window in windows for entry in window.entries]
        for window in windows:
            self.close(window).clear()
        return entries

    def clear(self) -> list[E]:
        """Forget what is open; what was held is returned in order of arrival within each group."""
        entries = [entry for window in self._open.values() for entry in window.entries]
        self._open.clear()
        self._lines.clear()
        return entries

    def _line(self, group: G) -> _Line[G, E]:
        key = self._line_of(group)
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = _Line()
        return line

    def _fill(self, window: Window[G, E], reason: FlushReason, turns: list[Window[G, E]]) -> None:
        """Let nothing more join; a window that had no turn gets it."""
        self._forget(window)
        if window.reason is None:
            window.reason = reason
            turns.append(window)

    def _turn(self, window: Window[G, E], reason: FlushReason, turns: list[Window[G, E]]) -> None:
        """Give a window its turn; others may join it."""
        self._stop_gathering(window)
        window.reason = reason
        turns.append(window)

    def _take_turn(self, window: Window[G, E]) -> None:
        line = self._line(window.group)
        line.turns.remove(window)
        line.first.pop(window, None)

    def _forget(self, window: Window[G, E]) -> None:
        del self._open[window.group]
        self._stop_gathering(window)

    def _stop_gathering(self, window: Window[G, E]) -> None:
        line = self._line(window.group)
        line.gathering.remove(window)
        line.early.pop(window.group, None)
