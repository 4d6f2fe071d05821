"""How long the messages of each queue had waited when they started, as the workers tell it.

Workers count from their own begin on, and may have run for days: what they had counted before the
run is taken off.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import celery
from kombu.exceptions import OperationalError

from routing.worker.waits import Histogram

#: Of each worker, by its name, the waits in each queue.
WorkerWaits = Mapping[str, Mapping[str, Histogram]]

#: Nobody knows how many will answer, so this is how long it takes.
ANSWER_SECONDS = 0.5


def worker_waits(app: celery.Celery) -> WorkerWaits:
    """What each worker has counted since it began; without those that do not answer in time."""
    try:
        answers = app.control.broadcast("queue_waits", reply=True, timeout=ANSWER_SECONDS)
    except (OperationalError, OSError):
        return {}
    return {
        worker: dict(_histograms(report))
        for answer in answers or ()
        for worker, report in answer.items()
    }


def _histograms(report: Mapping[str, Any]) -> Iterator[tuple[str, Histogram]]:
    """The waits that a worker answers with; none from stock's, which does not know the command."""
    for queue, waits in report.items():
        if isinstance(waits, Mapping):
            yield queue, {int(ms): count for ms, count in waits["histogram"].items()}


def waits_between(before: WorkerWaits, after: WorkerWaits) -> dict[str, Histogram]:
    """The waits in each queue that all workers have counted between two answers."""
    found: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for worker, queues in after.items():
        for queue, histogram in queues.items():
            earlier = before.get(worker, {}).get(queue, {})
            if any(count > histogram.get(ms, 0) for ms, count in earlier.items()):
                earlier = {}  # it was started again
            found[queue] += Counter(histogram) - Counter(earlier)
    return dict(found)
