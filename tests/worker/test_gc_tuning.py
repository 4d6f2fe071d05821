"""When a worker collects garbage that its thresholds do not see."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from routing.worker import gc_tuning as collector
from routing.worker.gc_tuning import GrowthWatch


class Cycle:
    def __init__(self, size: int) -> None:
        self.itself = self
        self.heavy = b"x" * size


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_few_heavy_objects_in_cycles_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LOOK_SECONDS", 0.0)
    gc.collect()
    watch = GrowthWatch()
    watch.look()
    with collector.paused():
        small = weakref.ref(Cycle(1))
        watch.look()
        assert small() is not None
        heavy = weakref.ref(Cycle(2 * collector.GROWTH_BYTES))
        watch.look()
    assert heavy() is None


def test_a_pool_process_gives_the_holes_of_its_heap_back_between_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, trimmed = [1000.0], []
    monkeypatch.setattr(collector.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(collector, "trim", lambda: trimmed.append(now[0]))
    watch = GrowthWatch()
    for _ in range(100):
        now[0] += 1.0
        watch.look()
    assert trimmed == [1030.0, 1060.0, 1090.0]
