"""``queue-size``: how long a queue should be. Latency, throughput and loss by its bound.

One producer publishes as fast as it can to one solo worker whose task takes about a millisecond, so
the queue is full all the time. ``drop_oldest`` keeps the newest: short queues are fresh and lose
much. ``block`` slows the producer: nothing is lost, and messages are as old as the queue is long.
Without a bound they only grow older. A worker may hold 32 messages more, or as many as its queue.

Every message that was sent must have started or been counted as dropped, else the run fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery

from benchmarks.apps.settings import Settings
from benchmarks.measure import POLL_SECONDS, add_consumer, wait_for
from benchmarks.runner import Study
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Crew, logs, run_module, running

Number = TypeVar("Number", int, float)

#: As in `benchmarks.apps.sampled`, which is imported in the workers' processes only.
LENGTHS = (1, 10, 100, 1000)
POLICIES = ("drop_oldest", "block")
UNBOUNDED = "unbounded"

PAYLOADS = {"0B": 0, "4KB": 4_096, "400KB": 409_600}

#: Most seconds that a producer sends; a cell then takes as long as its queue takes to drain.
SEND_SECONDS = 2.0
DRAIN_SECONDS = 60.0


def cells() -> Iterator[tuple[str, str, int]]:
    """Yield name, queue and payload of each cell."""
    queues = [UNBOUNDED, *(f"{policy}-{length}" for policy in POLICIES for length in LENGTHS)]
    for queue in queues:
        for name, size_bytes in PAYLOADS.items():
            yield f"{queue}_{name}", queue, size_bytes


def run(server: Server, size: int) -> dict[str, dict[str, Any]]:
    """Measure every cell with at most ``size`` messages."""
    server.flush()
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        settings = Settings(
            broker=server.broker_url,
            backend=server.backend_url,
            directory=Path(directory),
        )
        with running("sampled", Crew(pool="solo"), settings):
            for name, queue, size_bytes in cells():
                found[name] = _cell(server, settings, queue, size_bytes, size)
                figures_text = ", ".join(f"{key} {value}" for key, value in found[name].items())
                print(f"queue-size: {name}: {figures_text}", file=sys.stderr, flush=True)
    return found


def _cell(
    server: Server, settings: Settings, queue: str, size_bytes: int, size: int
) -> dict[str, Any]:
    for path in settings.directory.glob("ages.*"):
        path.write_bytes(b"")
    before = server.ledger(queue)
    add_consumer(settings.broker, queue)
    arguments = (queue, str(size_bytes), str(size), str(SEND_SECONDS))
    answer = run_module(
        "benchmarks.apps.sampled", settings, *arguments, within_seconds=DRAIN_SECONDS
    )
    sent = int(answer["count"])

    def dropped() -> int:
        return server.ledger(queue).get("dropped", 0) - before.get("dropped", 0)

    def is_over() -> bool:
        return len(_ages_ns(settings.directory)) + dropped() >= sent and not server.unfinished(
            queue
        )

    if not wait_for(is_over, seconds=DRAIN_SECONDS):
        raise BenchmarkError(
            f"queue {queue!r}: sent {sent}, started {len(_ages_ns(settings.directory))}, "
            f"dropped {dropped()}, at the broker {server.unfinished(queue)}, "
            f"ledger {server.ledger(queue)}\n{logs(settings.directory)}"
        )
    # The clock is the machine's: the same in all its processes.
    seconds = time.monotonic() - answer["began"]
    _cancel_consumer(settings.broker, queue)
    ages = sorted(_ages_ns(settings.directory))
    if len(ages) + dropped() != sent:
        raise BenchmarkError(f"queue {queue!r}: {len(ages)} started of {sent}")
    return figures(ages, sent=sent, seconds=seconds)


def figures(ages_ns: list[int], *, sent: int, seconds: float) -> dict[str, Any]:
    """Return the figures of one cell; the ages are in order."""
    return {
        **{
            f"p{percent}_ms": round(quantile(ages_ns, percent) / 1e6, 1) for percent in (50, 95, 99)
        },
        "messages_s": round(len(ages_ns) / seconds, 1),
        "sent": sent,
        "lost_percent": round(100 * (sent - len(ages_ns)) / sent, 1),
    }


def quantile(ordered: Sequence[Number], percent: int) -> Number:
    """Return the value that so many percent do not exceed.

    >>> quantile([10, 20, 30, 40], 50), quantile([10, 20, 30, 40], 99)
    (20, 40)
    """
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _ages_ns(directory: Path) -> list[int]:
    data = b"".join(path.read_bytes() for path in directory.glob("ages.*"))
    return list(memoryview(data).cast("q"))


def _cancel_consumer(broker_url: str, queue: str) -> None:
    with Celery("bench-control", broker=broker_url, set_as_current=False) as app:
        app.control.cancel_consumer(queue, reply=False)
    time.sleep(10 * POLL_SECONDS)


STUDY = Study(
    name="queue-size",
    summary="latency, rate and loss by max_length, payload and overflow policy",
    size=10_000,
    run=run,
    in_all=True,
)
