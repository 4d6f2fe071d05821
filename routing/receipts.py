"""What became of each message of a bulk call: accepted by the broker, or refused and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from routing.errors import PublishRefused

#: Refused items that the message of `PublishRefused` quotes; the receipts have them all.
_QUOTED = 3


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one message.

    Attributes:
        id: the task's id; also of one that was refused, so that it can be named.
        accepted: whether the broker has it.
        error: the item's position and why it was refused, None when it was not.
    """

    id: str
    accepted: bool
    error: str | None = None


class Receipts(Sequence[Receipt]):
    """The receipts of a bulk call, in the order of its items."""

    __slots__ = ("_errors", "_ids")

    def __init__(self, ids: Sequence[str] = (), errors: Mapping[int, str] | None = None) -> None:
        # A million accepted items are a list of ids and no objects.
        self._ids = list(ids)
        self._errors = dict(errors or {})

    @property
    def accepted(self) -> int:
        """Number of items that the broker has."""
        return len(self._ids) - len(self._errors)

    @property
    def refused(self) -> int:
        """Number of items that were not published."""
        return len(self._errors)

    @property
    def ids(self) -> list[str]:
        """The task ids of all items, in order."""
        return list(self._ids)

    @property
    def errors(self) -> dict[int, str]:
        """Position of each refused item to the reason."""
        return dict(self._errors)

    def raise_for_refused(self) -> None:
        """Raise when an item was refused.

        Raises:
            PublishRefused: with the first reasons in its message, and these receipts.
        """
        if not self._errors:
            return
        reasons = list(self._errors.values())[:_QUOTED]
        more = "" if self.refused <= _QUOTED else f"\n... and {self.refused - _QUOTED} more"
        raise PublishRefused(
            f"{self.refused} of {len(self)} messages were refused:\n" + "\n".join(reasons) + more,
            self,
        )

    def extend(self, ids: Sequence[str], errors: Mapping[int, str]) -> None:
        """Append the receipts of a chunk, whose errors count from the chunk's start."""
        start = len(self._ids)
        self._ids.extend(ids)
        for position in sorted(errors):
            index = start + position
            self._errors[index] = f"item {index}: {errors[position]}"

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
        error = self._errors.get(index)
        return Receipt(self._ids[index], error is None, error)

    def __repr__(self) -> str:
        return f"<Receipts: {self.accepted} accepted, {self.refused} refused>"
