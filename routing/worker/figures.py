"""What the calls of each batch task were like, since this worker began.

How many calls and items, why the calls were made, how the items ended, how long they had waited and
how long the calls took. What was lost on the way counts as well.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from routing.worker.waits import PERCENTS, percentile, two_digits


@dataclass(slots=True)
class _OfTask:
    """The calls of one task."""

    calls: int = 0
    items: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    waited_ms: Counter[int] = field(default_factory=Counter)
    ran_ms: Counter[int] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        return {
            "calls": self.calls,
            "items": self.items,
            "mean_size": round(self.items / self.calls, 1),
            "reasons": dict(sorted(self.reasons.items())),
            "outcomes": dict(sorted(self.outcomes.items())),
            **{f"wait_p{p}_ms": percentile(self.waited_ms, p) for p in PERCENTS},
            **{f"call_p{p}_ms": percentile(self.ran_ms, p) for p in PERCENTS},
        }


class Figures:
    """The figures of each task; a pool's threads may note calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: defaultdict[str, _OfTask] = defaultdict(_OfTask)

    def note(
        self,
        task: str,
        reason: str,
        outcomes: Mapping[str, int],
        *,
        waited_seconds: float,
        ran_seconds: float | None,
    ) -> None:
        """Note a call that is over.

        Arguments:
            task: name of its task.
            reason: why it was made.
            outcomes: how many of its items ended in each way.
            waited_seconds: how long the first of them had waited.
            ran_seconds: how long it ran; None where nobody knows.
        """
        with self._lock:
            found = self._of[task]
            found.calls += 1
            found.items += sum(outcomes.values())
            found.reasons[reason] += 1
            found.outcomes.update(outcomes)
            found.waited_ms[two_digits(waited_seconds * 1000)] += 1
            if ran_seconds is not None:
                found.ran_ms[two_digits(ran_seconds * 1000)] += 1

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each task, ready for JSON."""
        with self._lock:
            return {task: found.report() for task, found in sorted(self._of.items())}


#: Those of this worker.
FIGURES = Figures()
