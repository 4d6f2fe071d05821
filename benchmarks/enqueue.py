"""``enqueue``: publishing one by one with ``delay``, and many with ``delay_many``, results ignored.

One producing process at a time, nobody consumes. ``delay_many`` publishes five times as many
messages, to last long enough to be measured, and is compared with stock's ``delay`` loop: stock
has no call for many.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.apps.settings import BENCH_QUEUE, Settings
from benchmarks.measure import NOOP, PLAIN_PREFETCH
from benchmarks.runner import Case, Scenario
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError, Side, produce

MANY_FACTOR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueue:
    """One way to publish no-op tasks with one small argument."""

    side: Side
    mode: str
    factor: int = 1

    def rate(self, server: Server, size: int) -> float:
        """Publish ``size`` messages (times ``factor``) and return messages per second."""
        server.flush()
        count = size * self.factor
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            settings = Settings(
                broker=server.broker_url,
                backend=server.backend_url,
                directory=Path(name),
                store=False,
                prefetch=PLAIN_PREFETCH,
                batch_size=1,
            )
            seconds = produce(self.side, settings, self.mode, NOOP, str(count))
        if server.unfinished(BENCH_QUEUE) < count:
            raise BenchmarkError(f"published {count}, found {server.unfinished(BENCH_QUEUE)}")
        return count / seconds


SCENARIO = Scenario(
    name="enqueue",
    summary="20,000 times delay in a loop, and 100,000 messages through delay_many",
    unit="messages/s",
    size=20_000,
    rounds=3,
    measurements={
        "stock delay": Enqueue(side="stock", mode="delay").rate,
        "ours delay": Enqueue(side="ours", mode="delay").rate,
        "ours delay_many": Enqueue(side="ours", mode="delay_many", factor=MANY_FACTOR).rate,
    },
    cases={
        "delay": Case(ours="ours delay", stock="stock delay"),
        "delay_many": Case(ours="ours delay_many", stock="stock delay"),
    },
)
