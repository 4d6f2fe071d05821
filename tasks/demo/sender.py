"""Sends every flight as an item of its own, and keeps sending until the broker has taken each.

A full queue is the broker asking for patience: `delay_many` waits for room, and what did not get in
within the queue's `block_timeout` is sent again. An outage is waited out by the publish retries,
which send the same messages again under the same ids.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Event

from routing import Receipt, RoutingError
from tasks.flights import load

#: Rows in hand at a time: four calls of the bulk push.
CHUNK = 2_000

#: An outage of the broker is waited out for as long as it takes; seconds between the tries.
OUTAGE_RETRY = {
    "max_retries": None,
    "interval_start": 0.1,
    "interval_step": 0.2,
    "interval_max": 1.0,
}

Row = Mapping[str, str | int]


class Sender:
    """Sends the rows of one run. `ids` tells the item that each numbered row has become."""

    def __init__(self, run: str, *, stop: Event) -> None:
        self.run = run
        self.ids: dict[int, str] = {}
        self.started_at = 0.0
        self._stop = stop

    def send(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Send all rows; return when the broker has taken the last, or `stop` is set."""
        self.started_at = time.time()
        numbered: Iterator[Row] = (
            {"run": self.run, "number": number, **row} for number, row in enumerate(rows)
        )
        for chunk in _chunks(numbered):
            waiting: Sequence[Row] = chunk
            while waiting and not self._stop.is_set():
                waiting = self._send_once(waiting)

    def _send_once(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Send these rows and return those for which there was no room in time."""
        refused = []
        policy = {**OUTAGE_RETRY, "errback": self._between_tries}
        receipts: Iterable[Receipt] = load.delay_many(rows, retry_policy=policy)
        for row, receipt in zip(rows, receipts, strict=True):
            if receipt.accepted:
                self.ids[int(row["number"])] = receipt.id
            else:
                _check_full(receipt)
                refused.append(row)
        return refused

    def _between_tries(self, error: Exception, interval: float) -> None:
        """Go on trying, unless the run is over."""
        if self._stop.is_set():
            raise error


def _check_full(receipt: Receipt) -> None:
    """Anything else than a full queue does not go away by waiting."""
    if receipt.reason != "full":
        raise RoutingError(f"item {receipt.id} was refused: {receipt.error}")


def _chunks(rows: Iterable[Row]) -> Iterator[tuple[Row, ...]]:
    iterator = iter(rows)
    while chunk := tuple(itertools.islice(iterator, CHUNK)):
        yield chunk
