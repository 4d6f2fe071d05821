"""How long messages had waited when they started, by queue, since this worker began.

A wait is from the push, as the server stamped it, to the start in the pool, by the server's clock;
of a delayed message it begins when it was due. What producers of others have sent has no stamp and
is not counted. Waits are kept as a histogram that grows with their number of digits alone, so that
those of several workers can be added.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from routing.worker.interruption import InterruptibleRequest, holdings_of

#: How many messages have waited so many milliseconds: exact below 100, else of two digits.
Histogram = Mapping[int, int]

PERCENTS = (50, 95, 99)

#: That many calls of one message are counted together.
NOTED_AT_MOST = 64


class Waits:
    """The waits of each queue; a pool's threads may note them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: defaultdict[str, Counter[int]] = defaultdict(Counter)
        #: Calls that were noted and not counted yet: when they began, by the server's clock, and
        #: queue and push of each message.
        self._noted: deque[tuple[float, list[tuple[str, int]]]] = deque()

    def note_starts(self, requests: Sequence[InterruptibleRequest], accepted_at: float) -> None:
        """Note that the messages of these requests, of one batch, have started.

        Arguments:
            accepted_at: when the pool took them up, by `time.monotonic`.
        """
        if not requests or (holdings := holdings_of(requests[0].message)) is None:
            return
        found = [holdings.get(request.message.delivery_tag) for request in requests]
        moments = [(held.queue, held.at_ms) for held in found if held is not None and held.at_ms]
        at_ms = holdings.clock.now_ms() - (time.monotonic() - accepted_at) * 1000
        self._noted.append((at_ms, moments))
        is_much = len(requests) > 1 or len(self._noted) >= NOTED_AT_MOST
        # A signal handler may interrupt whoever counts, and note more.
        if is_much and self._lock.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._lock.release()

    def _count(self) -> None:
        """Count what was noted, for all that wait for it together; the lock is held."""
        while self._noted:
            at_ms, moments = self._noted.popleft()
            # The items of a batch have mostly come in few moments.
            alike = Counter(moments).items() if len(moments) > 1 else [(m, 1) for m in moments]
            for (queue, pushed_ms), count in alike:
                self._of[queue][two_digits(at_ms - pushed_ms)] += count

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the waits of each queue, ready for JSON."""
        with self._lock:
            self._count()
            return {
                queue: {
                    "starts": histogram.total(),
                    **{f"p{percent}_ms": percentile(histogram, percent) for percent in PERCENTS},
                    # Keys of JSON are text.
                    "histogram": {str(ms): count for ms, count in sorted(histogram.items())},
                }
                for queue, histogram in sorted(self._of.items())
            }


#: Those of this worker.
WAITS = Waits()


def two_digits(ms: float) -> int:
    """Return the milliseconds as the histogram keeps them.

    >>> [two_digits(ms) for ms in (-1.0, 0.4, 99.2, 123.0, 45_678.0)]
    [0, 0, 99, 120, 45000]
    """
    whole, unit = max(0, round(ms)), 1
    while whole >= 100 * unit:
        unit *= 10
    return whole // unit * unit


def percentile(histogram: Histogram, percent: int) -> int | None:
    """Return the milliseconds that so many percent have not waited longer than; None without any.

    >>> percentile({1: 90, 20: 8, 300: 2}, 50), percentile({1: 90, 20: 8, 300: 2}, 99)
    (1, 300)
    """
    left = -(-sum(histogram.values()) * percent // 100)
    for ms, count in sorted(histogram.items()):
        left -= count
        if left <= 0:
            return ms
    return None
