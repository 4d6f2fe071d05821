"""Says what happens often, without flooding the log.

The first of a kind is said at once; then at most one line a second for each kind, with the number
since the last line. A thread says the last line of a burst; whoever owns a `Bursts` has the end of
the process say it, too (`Bursts.flush`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from routing.transport.wakeup import Wakeup

#: Seconds between two lines of one kind.
INTERVAL_SECONDS = 1.0

#: Kinds that are remembered between their bursts: names that callers invent must not pile up.
_KINDS = 1000


@dataclass(slots=True)
class _Burst:
    say: Callable[[int], None]
    count: int = 0
    last_line: float = float("-inf")


class Bursts:
    """What no line of this process has told yet.

    Arguments:
        interval_seconds: time between two lines of one kind.
    """

    def __init__(self, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._reset()
        # Threads do not survive a fork, and the parent writes its own lines.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._bursts: dict[Hashable, _Burst] = {}
        self._later = Wakeup(self._tell_what_is_due, lambda: None)

    def note(self, kind: Hashable, say: Callable[[int], None], count: int = 1) -> None:
        """Count something, and have it said now or within the interval.

        Arguments:
            kind: what shares a line.
            say: logs the line, with the number since the last one; the latest one given is used.
            count: how often it happened.
        """
        with self._lock:
            burst = self._bursts.get(kind)
            if burst is None:
                self._forget_old()
                burst = self._bursts[kind] = _Burst(say)
            burst.say = say
            burst.count += count
        self._tell_what_is_due()

    def _forget_old(self) -> None:
        if len(self._bursts) >= _KINDS:
            kept = {kind: burst for kind, burst in self._bursts.items() if burst.count}
            self._bursts = kept

    def _tell_what_is_due(self) -> None:
        now = time.monotonic()
        for kind, burst in list(self._bursts.items()):
            wait = burst.last_line + self._interval - now
            if burst.count and wait > 0:
                self._later.within(wait)
            elif burst.count:
                self._tell(kind)

    def flush(self) -> None:
        """Say what no line has told yet."""
        for kind in list(self._bursts):
            self._tell(kind)

    def _tell(self, kind: Hashable) -> None:
        with self._lock:
            burst = self._bursts.get(kind)
            if burst is None or not burst.count:
                return
            count, burst.count = burst.count, 0
            burst.last_line = time.monotonic()
        burst.say(count)
