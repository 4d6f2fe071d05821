"""Which items of a call are at fault that failed without naming any: group testing, call by call.

Pure: who makes the calls says how each of them went. A call that fails proves that one of its items
is at fault, or the world is (the database is away); two that fail alike prove no more than one. So
one path is followed down, half by half. If anything succeeds on the way, the world is well: the
search goes on until the item at fault stands alone. Only that one is charged, and what was set
aside is called together again. If nothing does, down to single items, all is for later, and nobody
is charged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

E = TypeVar("E")

#: Of so few that have failed together, one from elsewhere tells more than one of them.
FEW = 3


class _Kind(Enum):
    """What a call is for."""

    REST = auto()  # nothing is known of its items
    HALF = auto()  # of those that have failed together
    SAMPLE = auto()  # one item that tells whether anything succeeds
    ALONE = auto()  # one item that is at fault if it fails


@dataclass(frozen=True, slots=True)
class Call(Generic[E]):
    """The next call of a trial.

    Attributes:
        items: what is called, in order.
        is_charged: whether a failure is its only item's own.
    """

    items: Sequence[E]
    is_charged: bool


class Trial(Generic[E]):
    """The search among the items of one call.

    Arguments:
        items: what is to be called, or has been and has not ended.
        has_failed: whether a call of all of them has failed just now.
        begins_with_half: whether one is likely to, as it was the world's fault the last time.
        company: returns with how many an item has ended its worker, 0 for none: half as many are
            called then, and what succeeds there leaves the others at fault.
        singly: call each alone, instead of half by half.
        suspect: the one that the function was at when that call failed, if it goes item by item.
    """

    def __init__(
        self,
        items: Sequence[E],
        *,
        has_failed: bool = False,
        begins_with_half: bool = False,
        company: Callable[[E], int] = lambda item: 0,
        singly: bool = False,
        suspect: E | None = None,
    ) -> None:
        self._place = {id(item): place for place, item in enumerate(items)}
        self._company, self._singly = company, singly
        self._suspect_first = suspect
        self._half_first = begins_with_half and len(items) > 1
        #: One of these is at fault, or the world is; nothing is known of the rest.
        self._failing: list[E] = list(items) if has_failed else []
        self._rest: list[E] = [] if has_failed else list(items)
        #: Whether anything has succeeded since they failed, and at any time.
        self._is_well = self._was_well = False
        #: Whether that is only likely, as they have ended a worker.
        self._is_assumed = False
        #: Those of them that have failed alone, as samples.
        self._failed_alone: list[E] = []
        self._kind, self._called = _Kind.REST, frozenset[int]()
        #: Calls so far.
        self.calls = 0
        #: Whether nothing succeeds: what is left is for later.
        self.is_world = False

    @property
    def left(self) -> list[E]:
        """What has not ended, in order."""
        return self._in_order([*self._failing, *self._rest])

    def next_call(self) -> Call[E] | None:
        """Return what to call next; None when all has ended, or the rest is for later."""
        if self.is_world or not (self._failing or self._rest):
            return None
        self._kind, items = self._choose()
        self._called = frozenset(map(id, items))
        self.calls += 1
        return Call(items, self._kind is _Kind.ALONE)

    def succeeded(self) -> None:
        """Note that the call has ended all of its items, each as it said."""
        if self._kind is not _Kind.ALONE:  # which may have failed, by its own policy
            self._is_well, self._was_well, self._is_assumed = True, True, False
        self._end(self._called)

    def dropped(self) -> None:
        """Note that the call was not made, or came to nothing: its items are not held any more."""
        self._end(self._called)

    def gone(self, items: Sequence[E]) -> None:
        """Note that these are left out of the call: they are not held any more, or have ended."""
        left_out = frozenset(map(id, items))
        self._called -= left_out
        self._end(left_out)

    def failed(self, left: Sequence[E], suspect: E | None = None) -> None:
        """Note that the call has failed.

        Arguments:
            left: its items that have not ended by then.
            suspect: the one that the function was at.
        """
        self._suspect_first = suspect or self._suspect_first
        unended = frozenset(map(id, left))
        is_partly_well = unended < self._called
        self._was_well = self._was_well or is_partly_well
        self._end(self._called - unended)
        match self._kind:
            case _Kind.SAMPLE:
                self._note_sample(left[0])
            case _Kind.HALF:
                is_known = self._is_well and not self._is_assumed
                self._suspect(left, is_well=is_known or is_partly_well)
            case _:
                self._suspect(left, is_well=False)

    def _choose(self) -> tuple[_Kind, list[E]]:
        if self._singly or self.calls >= len(self._place):
            return _Kind.ALONE, self.left[:1]
        if not self._failing:
            self._take_companions()
        failing, rest = self._failing, self._rest
        if not failing:
            count = len(rest) // 2 if self._half_first else len(rest)
            self._half_first = False
            return (_Kind.ALONE if len(rest) == 1 else _Kind.REST), rest[:count]
        is_last = not rest and (len(failing) == 1 or self._was_well)
        if is_last and len(failing) <= FEW:
            return _Kind.ALONE, failing[:1]
        half = failing[: max(1, len(failing) // 2)]
        if self._suspect_first in half and len(failing) > FEW:
            half = failing[-len(half) :]  # the one that likely succeeds
        if self._is_well and not self._is_assumed and len(failing) > FEW:
            # Only now, as a world that is away would make it a call for nothing.
            suspect, self._suspect_first = self._suspect_first, None
            if suspect in failing:
                return _Kind.HALF, [item for item in failing if item != suspect]
        if self._is_well:
            alone = _Kind.SAMPLE if self._is_assumed else _Kind.ALONE
            return (alone if len(half) == 1 else _Kind.HALF), half
        if len(failing) > FEW:
            return _Kind.HALF, half
        untried = [item for item in (*rest, *failing) if item not in self._failed_alone]
        return _Kind.SAMPLE, untried[:1]

    def _take_companions(self) -> None:
        """Suspect first what has ended a worker together, in the smallest company."""
        companies = {c for item in self._rest if (c := self._company(item))}
        if companies:
            least = min(companies)
            some = [item for item in self._rest if self._company(item) == least]
            self._suspect(some if least > 1 else some[:1], is_well=True)
            self._is_assumed = True

    def _suspect(self, items: Sequence[E], *, is_well: bool) -> None:
        """Search among these, which are left of those that have failed; the others have time."""
        chosen = set(map(id, items))
        others = (item for item in self.left if id(item) not in chosen)
        self._rest, self._failing = list(others), list(items)
        self._is_well, self._is_assumed, self._failed_alone = is_well, False, []

    def _note_sample(self, item: E) -> None:
        """Note that one has failed alone: from elsewhere it says all, of the failing two do."""
        if self._is_assumed:
            self._is_well = self._is_assumed = False
        is_elsewhere = item in self._rest
        self._failed_alone.append(item)
        self.is_world = is_elsewhere or len(self._failed_alone) > 1

    def _end(self, ended: Iterable[int]) -> None:
        gone = set(ended)
        self._failing = [item for item in self._failing if id(item) not in gone]
        self._rest = [item for item in self._rest if id(item) not in gone]

    def _in_order(self, items: Iterable[E]) -> list[E]:
        return sorted(items, key=lambda item: self._place[id(item)])
