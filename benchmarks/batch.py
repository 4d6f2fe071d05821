"""``batch``: the no-op tasks of ``drain`` as items of batches, prefork -c2.

Stock has no batches, so its side runs the same number of single tasks, with results ignored or
stored as in the case. A case with stored results also gives its ratio to stock with results
ignored (``ratio_to_stock_ignored``). ``batch_events`` is the same with task events on (``-E``),
as a worker runs that Flower watches. In `sink` cases a call takes 5 ms, as one of a database does:
a single task's as long as a batch's.
"""

from __future__ import annotations

from benchmarks.apps.settings import SINK, SINK_LOAD
from benchmarks.measure import LOAD, STOCK_PREFETCH_MULTIPLIER, Drain
from benchmarks.runner import Case, Measurement, Scenario
from benchmarks.server import Server
from benchmarks.workers import Crew

SIZES = (100, 500)
RESULTS = {"ignored": False, "stored": True}
# Two batches run, two more are collected meanwhile.
BATCHES_HELD = 4
# Single calls of 5 ms take that much longer: of so many items, as few are enough.
FEWER = 10

CREW = Crew(pool="prefork", concurrency=2)


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


def sinks() -> dict[str, Measurement]:
    """Return the same with calls of 5 ms, results ignored."""
    stock = Drain(side="stock", crew=CREW, task=SINK, prefetch=STOCK_PREFETCH_MULTIPLIER)

    def some(server: Server, size: int) -> float:
        return stock.rate(server, max(1, size // FEWER))

    found: dict[str, Measurement] = {"stock sink": some}
    for size in SIZES:
        found[f"ours {size} sink"] = Drain(
            side="ours", crew=CREW, task=SINK_LOAD, batch_size=size, prefetch=BATCHES_HELD * size
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
    summary="the same tasks as batches of 100 and 500, also with calls of 5 ms",
    unit="items/s",
    size=20_000,
    rounds=3,
    measurements=measurements(events=False) | sinks(),
    cases=cases()
    | {f"{size}_sink": Case(ours=f"ours {size} sink", stock="stock sink") for size in SIZES},
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
