"""What a person sees while the load runs: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from tqdm import tqdm

LINE_SECONDS = 5.0


class Progress(Protocol):
    """Shows how many items have ended, of those that will be sent."""

    def show(self, done: int, *, sent: int) -> None:
        """Show the figures of this moment."""

    def close(self) -> None:
        """Leave the last state on the screen."""


def progress(total: int) -> Progress:
    """A bar or lines on stderr, so that stdout keeps the result alone."""
    return Bar(total) if sys.stderr.isatty() else Lines(total)


class Bar:
    """A progress bar with rate and remaining time."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, desc="flights", unit="", unit_scale=True, dynamic_ncols=True)

    def show(self, done: int, *, sent: int) -> None:
        """Move the bar, also backwards."""
        self._bar.set_postfix_str(f"{sent:,} sent", refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar's line."""
        self._bar.close()


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._next = time.monotonic() + LINE_SECONDS

    def show(self, done: int, *, sent: int) -> None:
        """Print when it is time for a line."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_SECONDS
        print(f"{done:,} of {self._total:,} done, {sent:,} sent", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""
