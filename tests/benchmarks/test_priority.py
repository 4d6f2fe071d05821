"""What the scenarios ``priority`` and ``scale`` choose, and what they make of what was noted."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.apps import runs
from benchmarks.apps.plan import Plan
from benchmarks.apps.runs import WARM_NUMBER, Run
from benchmarks.fleet import Calls
from benchmarks.priority import starts
from benchmarks.priority.lending import LEND_BELOW, Lending
from benchmarks.priority.shares import longest_gap_ms, slot_ns
from benchmarks.priority.starts import BULK, SIZES, URGENT, Start
from benchmarks.priority.study import GRID, cells
from benchmarks.runner import Grid
from benchmarks.server import Server
from benchmarks.workers import BenchmarkError
from routing import Topology

MODULES = ["fleet", "load", "scale", "priority.shares", "priority.siblings", "priority.starts"]


def run(began_ms: float, *, took_ms: float = 0.0, number: int = 0) -> Run:
    began_ns = int(began_ms * 1e6)
    return Run(number=number, sent_ns=0, began_ns=began_ns, ended_ns=began_ns + int(took_ms * 1e6))


@dataclass(frozen=True)
class Cell:
    name: str

    def measure(self, server: Server, size: int) -> dict[str, Any]:
        return {"size": size}


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(f"benchmarks.{module}"), optionflags=flags)
    assert outcome.attempted
    assert not outcome.failed


def test_a_cell_is_chosen_by_a_pattern_of_its_name() -> None:
    grid = Grid(
        name="g", summary="", size=1, cells=lambda: map(Cell, ("5ms_a", "50ms_a", "50ms_b"))
    )
    assert list(grid.run(Server(), 7, only="^50ms")) == ["50ms_a", "50ms_b"]
    assert grid.run(Server(), 7, only="_b") == {"50ms_b": {"size": 7}}


def test_a_pattern_that_chooses_nothing_is_refused_with_the_names_that_there_are() -> None:
    grid = Grid(name="g", summary="", size=1, cells=lambda: map(Cell, ("5ms_a", "50ms_a")))
    with pytest.raises(BenchmarkError, match="got '7ms': 5ms_a, 50ms_a"):
        grid.run(Server(), 7, only="7ms")


@pytest.mark.parametrize("all_cells", [cells, scale.cells])
def test_each_cell_has_a_name_of_its_own(all_cells: Any) -> None:
    names = [cell.name for cell in all_cells()]
    assert sorted(set(names)) == sorted(names)


def test_every_length_and_size_is_measured_on_both_sides_and_in_both_orders() -> None:
    names = {cell.name for cell in cells()}
    hows = [f"{how}_{first}-first" for how in ("reserve", "shared") for first in (URGENT, BULK)]
    for length in starts.SECONDS:
        for size in SIZES:
            group = {f"{length}_{size}_{how}" for how in (*hows, "stock1", "stock4", "dedicated")}
            assert group <= names
        assert f"computing_{length}_1KB_stock1" in names


OURS = [cell for cell in starts.cells() if cell.plan().side == "ours"]


@pytest.mark.parametrize("cell", OURS, ids=lambda cell: cell.name)
def test_each_cell_of_ours_has_a_table_in_its_order(cell: Start) -> None:
    table = Topology.load({"queues": cell.plan().queues})
    assert next(iter(table.queues)) == cell.first
    assert table.queue(URGENT).reserve == (cell.how == "reserve")


@pytest.mark.parametrize(("length", "is_lent"), [("50ms", True), ("200ms", False)])
def test_a_reserve_is_lent_to_tasks_that_are_shorter_than_its_table_says(
    length: str, is_lent: bool
) -> None:
    cell = Lending(length=length, reserve=1, lend_below=LEND_BELOW)
    assert cell.plan().queues[URGENT]["lend_below"] == LEND_BELOW
    assert cell.is_lent is is_lent
    assert not Lending(length=length, reserve=1).is_lent
    assert Lending(length=length).is_lent


@pytest.mark.parametrize("cell", [*starts.cells()], ids=lambda cell: cell.name)
def test_the_backlog_outlasts_the_calls_that_are_made_beside_it(cell: Start) -> None:
    lasts = cell.backlog * cell.seconds / cell.crew.concurrency
    assert cell.calls_at_once / starts.CALLS_PER_SECOND < lasts
    assert cell.backlog * SIZES[cell.size] <= starts.BACKLOG_BYTES


def test_a_reserve_bounds_a_start_by_the_idle_fleet_and_without_one_by_a_task_more() -> None:
    idle = Calls(waits_ms=[1.0] * 98 + [20.0] * 2, unstarted=0)
    assert starts.figures(idle, idle, bulk_ms=0.0)["bound_ms"] == 60.0
    assert starts.figures(idle, idle, bulk_ms=50.0)["bound_ms"] == 110.0
    one = Calls(waits_ms=[1.0], unstarted=0)
    assert starts.figures(one, one, bulk_ms=0.0)["bound_ms"] == starts.BOUND_MS


def test_means_are_compared_with_stock_at_multiplier_1_where_it_was_measured() -> None:
    cases = {
        "50ms_1KB_shared_urgent-first": {"mean_ms": 33.0},
        "50ms_1KB_stock1": {"mean_ms": 30.0},
        "2s_1KB_shared_urgent-first": {"mean_ms": 33.0},
    }
    GRID.compare(cases)
    assert [case["mean_to_stock"] for case in cases.values()] == [1.1, 1.0, None]


def test_workers_are_compared_with_one_worker() -> None:
    one = dict.fromkeys(scale.COMPARED, 2.0)
    cases = {"workers_1": one, "workers_8": dict.fromkeys(scale.COMPARED, 3.0), "leaving": {}}
    scale.GRID.compare(cases)
    assert cases["workers_8"]["push_cpu_ms_to_one"] == 1.5
    assert cases["leaving"] == {}


def test_slot_time_is_what_lies_within_the_window() -> None:
    taken = [run(0, took_ms=10), run(8, took_ms=4), run(95, took_ms=10), run(200, took_ms=1)]
    assert slot_ns(taken, int(5e6), int(100e6)) == 14e6


def test_the_longest_wait_counts_from_the_begin_and_to_the_end_of_the_window() -> None:
    assert longest_gap_ms([run(10), run(30)], 0, int(40e6)) == 20
    assert longest_gap_ms([run(10), run(30)], 0, int(100e6)) == 70
    assert longest_gap_ms([], 0, int(100e6)) == 100


def test_runs_are_read_in_order_of_their_starts_without_those_that_only_warmed_up(
    tmp_path: Path,
) -> None:
    first, second, warm = run(1, number=1), run(2, number=2), run(3, number=WARM_NUMBER)
    runs.path_of(tmp_path, "q", 10).write_bytes(second.pack() + warm.pack()[:-1])
    runs.path_of(tmp_path, "q", 11).write_bytes(warm.pack() + first.pack())
    runs.path_of(tmp_path, "other", 10).write_bytes(first.pack())
    assert runs.read(tmp_path, "q") == [first, second]
    assert runs.read(tmp_path, "q", pid=10) == [second]
    assert runs.count(tmp_path, "q") == 3
    runs.forget(tmp_path, "q")
    assert (runs.count(tmp_path, "q"), runs.count(tmp_path, "other")) == (0, 1)


def test_a_plan_reaches_the_processes_of_a_round_as_it_is(tmp_path: Path) -> None:
    plan = Plan(side="stock", queues={"b": {"weight": 2}, "a": {}}, multiplier=4)
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    assert list(Plan.read(tmp_path).queues) == ["b", "a"]
