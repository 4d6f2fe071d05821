"""What became of each message of a bulk call: accepted by the broker, or refused and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, overload

from routing.errors import PublishRefused

#: Refused items that the message of `PublishRefused` quotes; the receipts have them all.
_QUOTED = 3


#: Why an item was refused. "full": its queue had no room; send it again later. "too_large": its
#: queue takes no message of this size. "invalid": it cannot be a message of this task.
RefusalReason = Literal["full", "too_large", "invalid"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an item was refused: in one word, and in a sentence."""

    reason: RefusalReason
    error: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one message.

    Attributes:
        id: the task's id; also of one that was refused, so that it can be named.
        accepted: whether the broker has it.
        error: the item's position and why it was refused, None when it was not.
        reason: the same in one word ("full", "too_large" or "invalid"), None when it was accepted.
    """

    id: str
    accepted: bool
    error: str | None = None
    reason: RefusalReason | None = None


class Receipts(Sequence[Receipt]):
    """The receipts of a bulk call, in the order of its items."""

    __slots__ = ("_ids", "_refusals")

    def __init__(self) -> None:
        # A million accepted items are a list of ids and no objects.
        self._ids: list[str] = []
        self._refusals: dict[int, Refusal] = {}

    @property
    def accepted(self) -> int:
        """Number of items that the broker has."""
        return len(self._ids) - len(self._refusals)

    @property
    def refused(self) -> int:
        """Number of items that were not published."""
        return len(self._refusals)

    @property
    def ids(self) -> list[str]:
        """The task ids of all items, in order."""
        return list(self._ids)

    @property
    def errors(self) -> dict[int, str]:
        """Position of each refused item to the reason."""
        return {index: refusal.error for index, refusal in self._refusals.items()}

    def raise_for_refused(self) -> None:
        """Raise when an item was refused.

        Raises:
            PublishRefused: with the first reasons in its message, and these receipts.
        """
        if not self._refusals:
            return
        reasons = [refusal.error for refusal in islice(self._refusals.values(), _QUOTED)]
        more = "" if self.refused <= _QUOTED else f"\n... and {self.refused - _QUOTED} more"
        raise PublishRefused(
            f"{self.refused} of {len(self)} messages were refused:\n" + "\n".join(reasons) + more,
            self,
        )

    def extend(self, ids: Sequence[str], refused: Mapping[int, Refusal]) -> None:
        """Append the receipts of a chunk, whose positions count from the chunk's start."""
        start = len(self._ids)
        self._ids.extend(ids)
        for position in sorted(refused):
            refusal, index = refused[position], start + position
            self._refusals[index] = Refusal(refusal.reason, f"item {index}: {refusal.error}")

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | list[Receipt]:
        if isinstance(index, slice):
            return [self._receipt(i) for i in range(*index.indices(len(self)))]
        return self._receipt(range(len(self))[index])

    def __iter__(self) -> Iterator[Receipt]:
        return (self._receipt(index) for index in range(len(self)))

    def _receipt(self, index: int) -> Receipt:
        refusal = self._refusals.get(index)
        if refusal is None:
            return Receipt(self._ids[index], True)
        return Receipt(self._ids[index], False, refusal.error, refusal.reason)

    def __repr__(self) -> str:
        return f"<Receipts: {self.accepted} accepted, {self.refused} refused>"
