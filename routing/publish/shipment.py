"""Messages of one lane on their way to the broker; what it has taken is not sent again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routing.errors import MessageTooLarge
from routing.message.eta import Delay
from routing.publish.receipts import Refusal
from routing.redis.bounds import Terms
from routing.transport.gathering import Lane
from routing.transport.overflow import Overflow

#: Position of an item in its chunk -> why it was refused.
Refused = dict[int, Refusal]


class Shipment:
    """The texts of a chunk that travel together.

    A blocked producer may wait for long, piece by piece, and lose its connection meanwhile: sent
    again, the shipment goes on where the queue stopped.

    Arguments:
        lane: what the texts share.
        positions: the positions of the items in their chunk.
        texts: their messages.
    """

    def __init__(self, lane: Lane, positions: Sequence[int], texts: Sequence[str | Delay]) -> None:
        self._lane = lane
        self._positions = list(positions)
        self._texts = list(texts)
        self._refused: Refused = {}

    def send(self, channel: Any) -> Refused:
        """Push what is left; refuse what is too large, or what the queue has no room for."""
        lane = self._lane
        overflow: Overflow = channel.overflow(lane.queue, delayed=lane.delayed)
        if not lane.exempt and overflow.largest is not None:
            self._refuse_too_large(overflow)
        if not self._texts:
            return self._refused
        terms: Terms = "exempt" if lane.exempt else ""
        count = len(self._texts)
        pushed = channel.push(
            lane.queue,
            tuple(self._texts),
            priority=lane.priority,
            terms=terms,
            delayed=lane.delayed,
            took=self._took,
        )
        if self._positions:
            full = Refusal("full", str(overflow.full(pushed, count)))
            self._refused.update(dict.fromkeys(self._positions, full))
        return self._refused

    def _took(self, count: int) -> None:
        del self._positions[:count]
        del self._texts[:count]

    def _refuse_too_large(self, overflow: Overflow) -> None:
        kept: list[tuple[int, str | Delay]] = []
        for position, text in zip(self._positions, self._texts, strict=True):
            try:
                overflow.check_size(text)
            except MessageTooLarge as error:
                self._refused[position] = Refusal("too_large", str(error))
            else:
                kept.append((position, text))
        self._positions = [position for position, _ in kept]
        self._texts = [text for _, text in kept]
