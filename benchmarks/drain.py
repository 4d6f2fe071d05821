"""``drain``: a backlog of no-op tasks, one message a task, results ignored.

Two solo workers are compared with stock's prefork worker of two processes, because on stock that
is how two cores are used; stock's own two solo workers are given beside it
(``ratio_to_stock_two_solo``).
"""

from __future__ import annotations

from benchmarks.measure import PLAIN_PREFETCH, STOCK_PREFETCH_MULTIPLIER, Drain
from benchmarks.runner import Case, Scenario
from benchmarks.workers import Crew

PREFORK = Crew(pool="prefork", concurrency=2)
TWO_SOLO = Crew(pool="solo", workers=2)

SCENARIO = Scenario(
    name="drain",
    summary="20,000 no-op tasks: prefork -c2, and two solo workers",
    unit="tasks/s",
    size=20_000,
    rounds=3,
    measurements={
        "stock prefork": Drain(side="stock", crew=PREFORK, prefetch=STOCK_PREFETCH_MULTIPLIER).rate,
        "ours prefork": Drain(side="ours", crew=PREFORK, prefetch=PLAIN_PREFETCH).rate,
        "stock two solo": Drain(
            side="stock", crew=TWO_SOLO, prefetch=STOCK_PREFETCH_MULTIPLIER
        ).rate,
        "ours two solo": Drain(side="ours", crew=TWO_SOLO, prefetch=PLAIN_PREFETCH).rate,
    },
    cases={
        "prefork": Case(ours="ours prefork", stock="stock prefork"),
        "two_solo": Case(
            ours="ours two solo",
            stock="stock prefork",
            also={"ratio_to_stock_two_solo": "stock two solo"},
        ),
    },
)
