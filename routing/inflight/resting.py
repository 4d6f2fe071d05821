"""Until when, and until how much has ended, another look would find what the last one found.

A worker's loop comes round at least twice for each task, and a look goes through all queues.
"""

from __future__ import annotations

import math
import time

from routing.inflight.fetch_policy import Rest


class Resting:
    """The rest of one fetcher; over as soon as it sends something."""

    def __init__(self) -> None:
        self._below = 0.0
        self._until = 0.0

    def begin(self, rest: Rest, freed: int) -> None:
        """Begin to rest.

        Arguments:
            rest: how long.
            freed: messages that had ended before the look.
        """
        self._until = time.monotonic() + rest.seconds
        self._below = freed + rest.endings

    def end(self) -> None:
        """Look again next time."""
        self._until = -math.inf

    def lasts(self, freed: int) -> bool:
        """Return whether another look would find the same, as so many have ended by now."""
        return freed < self._below and time.monotonic() < self._until
