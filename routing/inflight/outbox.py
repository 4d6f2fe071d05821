"""What waits to be carried to the broker: endings, dead letters, messages to requeue.

Everything is taken for one call and put back when that call may not have arrived; each of them
changes nothing when it is done twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

from routing.inflight.locks import new_lock
from routing.redis.values import Burial, Ending, Fetch, Return, Settlement

#: Most tags in one settlement: well below what one script call can unpack, and about 10 ms of the
#: server.
SETTLE_AT_MOST = 3000


#: What one call carries, or several for one queue each.
Taken: TypeAlias = Settlement | dict[str, list[Burial]] | list[tuple[str, list[Return]]]


class Settles(Protocol):
    """What takes endings to the server."""

    def ended(self, *, at_once: bool = False) -> None:
        """Note that endings wait; with `at_once`, take them there before this returns."""


class Outbox:
    """Endings, burials and returns on their way; safe from any thread."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._ended: list[Ending] = []
        self._burials: dict[str, list[Burial]] = {}
        self._oldest = 0.0
        self._returned = 0.0
        self._returns: dict[str, list[Return]] = {}
        self._unread: list[Fetch] = []
        #: What calls of their own carry now, and since when.
        self._under_way: list[tuple[float, Taken]] = []

    def __len__(self) -> int:
        """Return how many endings and burials wait."""
        return len(self._ended) + sum(map(len, self._burials.values()))

    @property
    def endings(self) -> int:
        """How many endings wait, burials apart."""
        return len(self._ended)

    @property
    def ended_in(self) -> set[str]:
        """The queues of the endings that wait."""
        with self._lock:
            return {ending.queue for ending in self._ended}

    @property
    def age(self) -> float:
        """Seconds since the oldest of them came; 0 when there is none."""
        return time.monotonic() - self._oldest if len(self) else 0.0

    @property
    def waits_seconds(self) -> float:
        """Seconds since the oldest of all that is owed came or left; 0 when there is none."""
        since = [self._oldest] if len(self) else []
        since += [self._returned] if self.has_returns else []
        since += [began for began, _ in self._under_way]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def has_burials(self) -> bool:
        """Whether messages wait to become dead letters."""
        return bool(self._burials)

    @property
    def has_returns(self) -> bool:
        """Whether messages wait to be requeued."""
        return bool(self._returns or self._unread)

    def unsettled(self) -> Counter[str]:
        """Return how many messages of each queue a fetch may overtake, though they have ended.

        They wait for a call of their own, or such a call carries them. The endings that wait go
        along with the fetch.
        """
        if not (self._under_way or self._burials or self.has_returns):
            return Counter()
        with self._lock:
            every: list[Taken] = [taken for _, taken in self._under_way]
            every += [self._burials, list(self._returns.items()), *map(_asked, self._unread)]
            return sum(map(_counts, every), Counter())

    @property
    def is_carried(self) -> bool:
        """Whether a call of its own carries something now."""
        return bool(self._under_way)

    def overdue(self, seconds: float) -> list[Taken]:
        """Return what calls have carried for longer: their thread may stand still."""
        until = time.monotonic() - seconds
        with self._lock:
            return [taken for began, taken in self._under_way if began <= until]

    def arrived(self, taken: Taken) -> Counter[str]:
        """Note that the call for this has ended; returns how many messages each queue had in it."""
        with self._lock:
            self._under_way = [one for one in self._under_way if one[1] is not taken]
        return _counts(taken)

    def tags(self) -> list[str]:
        """Return the tags of everything that has ended: they are unacknowledged until settled."""
        with self._lock:
            tags = [ending.tag for ending in self._ended]
            tags += [burial.tag for burials in self._burials.values() for burial in burials]
        return tags

    # -- putting in

    def add_endings(self, endings: Iterable[Ending]) -> None:
        """Add how messages ended."""
        with self._lock:
            self._note_time()
            self._ended += endings

    def add_burial(self, queue: str, burial: Burial) -> None:
        """Add a message that becomes a dead letter."""
        with self._lock:
            self._note_time()
            self._burials.setdefault(queue, []).append(burial)

    def add_return(self, queue: str, returned: Return) -> None:
        """Add a message that is requeued."""
        with self._lock:
            if not self.has_returns:
                self._returned = time.monotonic()
            self._returns.setdefault(queue, []).append(returned)

    def add_unread(self, fetch: Fetch) -> None:
        """Add a fetch whose reply was lost: what it took is requeued by enumeration."""
        with self._lock:
            if not self.has_returns:
                self._returned = time.monotonic()
            self._unread.append(fetch)

    def _note_time(self) -> None:
        if not self._ended and not self._burials:
            self._oldest = time.monotonic()

    # -- taking out

    def take_settlement(self, *, rides: bool = False) -> Settlement:
        """Take the oldest endings, for a call that will carry them.

        Arguments:
            rides: the call is a fetch, which settles before it takes anything.
        """
        with self._lock:
            # A signal's handler may come in here and add to it.
            ended, self._ended = self._ended, []
            self._ended[:0] = ended[SETTLE_AT_MOST:]
            settlement = Settlement(ended[:SETTLE_AT_MOST])
            if not rides:
                self._leaves(settlement)
        return settlement

    def _leaves(self, taken: Taken) -> None:
        if _counts(taken):
            self._under_way.append((time.monotonic(), taken))

    def restore_settlement(self, settlement: Settlement) -> None:
        """Take endings back whose call may not have arrived; settling twice changes nothing."""
        if not settlement.endings:
            return
        with self._lock:
            self._note_time()
            self._ended[:0] = settlement.endings

    def take_burials(self) -> dict[str, list[Burial]]:
        """Take the dead letters of each queue, for calls that will carry them."""
        with self._lock:
            burials, self._burials = self._burials, {}
            self._leaves(burials)
        return burials

    def restore_burials(self, burials: Mapping[str, Sequence[Burial]]) -> None:
        """Take burials back whose call may not have arrived; burying twice changes nothing."""
        with self._lock:
            self._note_time()
            for queue, entries in burials.items():
                self._burials.setdefault(queue, [])[:0] = entries

    def take_returns(self) -> list[tuple[str, list[Return]]]:
        """Take what must be requeued: per queue, in fetch order."""
        with self._lock:
            returns, self._returns = self._returns, {}
            unread, self._unread = self._unread, []
            # What is requeued last stands first: the newest fetch before what was held earlier.
            taken = [
                (queue, [Return(tag) for tag in fetch.tags(position)])
                for fetch in reversed(unread)
                for position, (queue, _) in enumerate(fetch.asked)
            ]
            taken += [
                (queue, sorted(entries, key=lambda returned: returned.order))
                for queue, entries in returns.items()
            ]
            self._leaves(taken)
            return taken

    def restore_returns(self, returns: Iterable[tuple[str, Sequence[Return]]]) -> None:
        """Take returns back whose call may not have arrived; requeueing twice changes nothing."""
        with self._lock:
            for queue, entries in returns:
                kept = self._returns.setdefault(queue, [])
                kept[:0] = [replace(entry, order=-1) for entry in entries]


def _asked(fetch: Fetch) -> Taken:
    return [(queue, [Return("")] * count) for queue, count in fetch.asked]


def _counts(taken: Taken) -> Counter[str]:
    """Return how many messages of each queue there are in what was taken."""
    if isinstance(taken, Settlement):
        return taken.queues()
    counts: Counter[str] = Counter()
    for queue, entries in taken.items() if isinstance(taken, dict) else taken:
        counts[queue] += len(entries)
    return counts
