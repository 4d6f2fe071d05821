"""``batch``: the no-op tasks of ``drain`` as items of batches, prefork -c2.

Stock has no batches, so its side runs the same number of single tasks, with results ignored or
stored as in the case. A case with stored results also gives its ratio to stock with results
ignored (``ratio_to_stock_ignored``). ``batch_events`` is the same with task events on (``-E``),
as a worker runs that Flower watches.
"""

from __future__ import annotations

from benchmarks.measure import LOAD, STOCK_PREFETCH_MULTIPLIER, Drain
from benchmarks.runner import Case, Measurement, Scenario
from benchmarks.workers import Crew

SIZES = (100, 500)
RESULTS = {"ignored": False, "stored": True}
# Two batches run, two more are collected meanwhile.
BATCHES_HELD = 4


def measurements(*, events: bool) -> dict[str, Measurement]:
    """Return stock's single tasks and our batches, with results ignored and stored."""
    crew = Crew(pool="prefork", concurrency=2, events=events)
    found: dict[str, Measurement] = {}
    for word, store in RESULTS.items():
        found[f"stock {word}"] = Drain(
            side="stock", crew=crew, store=store, prefetch=STOCK_PREFETCH_MULTIPLIER
        ).rate
        for size in SIZES:
            found[f"ours {size} {word}"] = Drain(
                side="ours",
                crew=crew,
                task=LOAD,
                store=store,
                batch_size=size,
                prefetch=BATCHES_HELD * size,
            ).rate
    return found


def cases() -> dict[str, Case]:
    """Return one case for every size and result setting."""
    return {
        f"{size}_{word}": Case(
            ours=f"ours {size} {word}",
            stock=f"stock {word}",
            also={"ratio_to_stock_ignored": "stock ignored"} if store else {},
        )
        for size in SIZES
        for word, store in RESULTS.items()
    }


SCENARIO = Scenario(
    name="batch",
    summary="the same tasks as batches of 100 and 500, results ignored and stored",
    unit="items/s",
    size=20_000,
    rounds=3,
    measurements=measurements(events=False),
    cases=cases(),
)

EVENTS = Scenario(
    name="batch_events",
    summary="batch with task events on (-E)",
    unit="items/s",
    size=20_000,
    rounds=3,
    measurements=measurements(events=True),
    cases=cases(),
    in_all=False,
)
