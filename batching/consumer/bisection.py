"""Calls the items of a failed call again, in parts, until those at fault are known (`trial.py`).

Each part is a unit of its own, with a slot and a time limit of its own. Meanwhile the items are
held as what waits for its turn: whoever stops the worker gets them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from batching.consumer.pace import PacedSlots
from batching.consumer.request import ItemRequest, end_each
from batching.consumer.trial import Trial
from batching.outcomes import Blame
from routing.inflight.held import State
from routing.transport.message import EngineMessage
from routing.worker.interruption import mark
from routing.worker.units import Unit

logger = logging.getLogger(__name__)


class Bisection:
    """The search among the items of one call.

    Arguments:
        task: their task.
        trial: decides.
        make: makes the unit of a call, of its items, of who is to blame, and of this; None where
            the search is over with that call.
        slots: where units wait for their turn.
    """

    def __init__(
        self,
        task: Any,
        trial: Trial[ItemRequest],
        *,
        make: Callable[[Sequence[ItemRequest], Blame, Bisection | None], Unit],
        slots: PacedSlots,
    ) -> None:
        self.trial = trial
        self._task, self._make, self._slots = task, make, slots

    def first_call(self) -> tuple[Sequence[ItemRequest], Blame]:
        """Return what to call first; the others wait."""
        call = self.trial.next_call()
        if call is None:
            return (), Blame.NOBODY
        called = set(map(id, call.items))
        mark([item for item in self.trial.left if id(item) not in called], State.WAITING)
        return call.items, Blame.EACH if call.is_charged else Blame.NOBODY

    def over(
        self,
        left: Sequence[ItemRequest],
        *,
        has_failed: bool,
        is_empty: bool,
        suspect: ItemRequest | None,
    ) -> None:
        """Note how a call went, and make the next.

        Arguments:
            left: those of its items that have not ended.
            has_failed: whether that is because it has failed.
            is_empty: whether it had no items any more.
            suspect: the item that the function was at when it failed.
        """
        if has_failed:
            self.trial.failed(left, suspect)
        elif is_empty:  # all were revoked meanwhile, or were too old
            self.trial.dropped()
        else:
            self.trial.succeeded()
        self.go_on(left)

    def go_on(self, left: Sequence[ItemRequest]) -> None:
        """Make the next call, now that one is over.

        Arguments:
            left: those of its items that have not ended.
        """
        for item in left:
            item.wait_again()
        mark(left, State.WAITING)
        if (call := self.trial.next_call()) is not None:
            blame = Blame.EACH if call.is_charged else Blame.NOBODY
            self._slots.call_again(self._make(call.items, blame, self))
        elif self.trial.is_world:
            self._give_up(self.trial.left)

    def _give_up(self, items: Sequence[ItemRequest]) -> None:
        """Nothing succeeds: all comes again later, and in the end fails by its own policy."""
        limit = self._task.max_retries
        later = [
            item
            for item in items
            if isinstance(item.message, EngineMessage) and (limit is None or item.rounds < limit)
        ]
        chosen = set(map(id, later))
        spent = [item for item in items if id(item) not in chosen]
        logger.warning(
            "%d items of %s fail, and so does whatever is called in their place: %s",
            len(items),
            self._task.name,
            f"{len(later)} come again, uncharged" if later else "they end by their own policy",
            extra={"event": "batch_postponed", "calls": self.trial.calls},
        )
        end_each(later, lambda item: item.come_again())
        if spent:
            self._slots.call_again(self._make(spent, Blame.EACH, None))


def who_is_to_blame(task: Any, items: Sequence[ItemRequest]) -> Blame | None:
    """Return who has failed when a call of these does; None where some of them go first."""
    is_first = not any(item.rounds or item.company for item in items if item.has_history)
    if not task.acks_late or (task.on_error == "retry" and is_first):
        return Blame.EACH
    return Blame.ALONE if is_first or len(items) == 1 else None


def search_of(
    task: Any,
    items: Sequence[ItemRequest],
    *,
    has_failed: bool,
    suspect: ItemRequest | None = None,
) -> Trial[ItemRequest]:
    """Return the search among the items of a call.

    Arguments:
        task: their task.
        items: those that have not ended.
        has_failed: whether a call of all of them has failed just now.
        suspect: the one that the function was at then.
    """
    return Trial(
        items,
        has_failed=has_failed,
        suspect=suspect,
        begins_with_half=any(item.rounds for item in items),
        company=lambda item: item.company,
        singly=task.on_error != "bisect",
    )
