"""What the scenario ``stages`` makes of what its worker noted."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stages
from benchmarks.apps import marks
from benchmarks.apps.marks import TURN, Marks, Span
from benchmarks.apps.runs import Run, Sent
from benchmarks.priority.starts import BACKLOG_BYTES, CALLS_PER_SECOND
from benchmarks.stages import AFTER_REPLY, STAGES, SUM, Stages, Way
from routing import Topology

MS = 1_000_000
POINTS = {
    "called": 0,
    "pushed": 1,
    "bell": 3,
    "exchange": 6,
    "reply": 8,
    "delivered": 10,
    "handed": 15,
    "began": 21,
}


def way(**points: Any) -> Way:
    """Return a way; its points are in milliseconds."""
    given = {**POINTS, **points}
    return Way(**{name: None if at is None else at * MS for name, at in given.items()})


def stages_ms(one: Way) -> list[float]:
    return [taken / MS for taken in one.stages().values()]


def noted(*lines: str) -> Marks:
    return Marks.parse(lines)


@pytest.mark.parametrize("module", [stages, marks])
def test_examples_are_true(module: Any) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


def test_each_stage_begins_where_the_one_before_ends() -> None:
    assert stages_ms(way()) == [1, 2, 3, 4, 5, 6]


def test_without_a_bell_a_call_waits_for_the_exchange_from_its_push() -> None:
    one = way(bell=None)
    assert stages_ms(one) == [1, 0, 5, 4, 5, 6]
    assert not one.passes("push_to_bell")
    assert one.passes("bell_to_exchange")


def test_an_exchange_that_was_out_already_costs_a_call_only_its_delivery() -> None:
    one = way(bell=None, exchange=0)
    assert stages_ms(one) == [1, 0, 0, 9, 5, 6]
    assert not one.passes("bell_to_exchange")


def test_a_worker_that_is_ahead_of_the_producer_has_no_stage_below_zero() -> None:
    assert stages_ms(way(pushed=12)) == [12, 0, 0, 0, 3, 6]
    assert stages_ms(way(pushed=30)) == [21, 0, 0, 0, 0, 0]


@given(
    st.lists(st.integers(0, 50), min_size=7, max_size=7),
    st.one_of(st.none(), st.integers(0, 50)),
)
def test_the_stages_add_up_to_the_wait(after: Sequence[int], bell: int | None) -> None:
    names = [name for name in POINTS if name not in ("called", "bell")]
    one = way(bell=bell, **dict(zip(names, after, strict=False)))
    assert all(taken >= 0 for taken in stages_ms(one))
    assert sum(one.stages().values()) == one.began - one.called


def test_a_call_is_followed_by_its_id_and_by_the_exchange_that_brought_it() -> None:
    found = noted(
        "bell 4",  # of a call before
        "bell 12",
        "exchange f:1: 14",
        "exchange f:2: 19",
        "reply f:1: 16",
        "delivery a f:1: 17",
        "handed a 18",
    )
    run = Run(number=0, sent_ns=10, began_ns=20, ended_ns=21)
    assert stages.ways_of([Sent(10, 11, "a")], [run], found) == [
        Way(called=10, pushed=11, bell=12, exchange=14, reply=16, delivered=17, handed=18, began=20)
    ]


def test_a_bell_that_is_heard_after_the_exchange_is_none_of_this_call() -> None:
    found = noted(
        "exchange f:1: 14", "bell 15", "reply f:1: 16", "delivery a f:1: 17", "handed a 18"
    )
    run = Run(number=0, sent_ns=10, began_ns=20, ended_ns=21)
    assert stages.ways_of([Sent(10, 11, "a")], [run], found)[0].bell is None


def test_who_did_not_go_through_a_stage_waited_nothing_there_and_is_not_counted() -> None:
    found = stages.stage_figures([way(), way(bell=None), way(bell=None)])
    assert list(found) == [*STAGES, AFTER_REPLY, SUM]
    assert found["push_to_bell"] == {
        "calls": 1,
        "p50_ms": 0.0,
        "p95_ms": 2.0,
        "p99_ms": 2.0,
        "max_ms": 2.0,
    }
    assert found[SUM]["calls"] == 3
    assert found[SUM]["p50_ms"] == 21.0
    assert found[AFTER_REPLY]["p50_ms"] == 2.0


def test_the_loop_is_told_of_while_calls_are_made_and_what_lies_within_counts_once() -> None:
    spans = [
        Span(TURN, 1 * MS, 11 * MS, 10 * MS, 7 * MS),
        Span("delivery", 2 * MS, 10 * MS, 2 * MS, 1 * MS),
        Span("packing", 3 * MS, 9 * MS, 6 * MS, 5 * MS),
        Span("packing", 30 * MS, 40 * MS, 10 * MS, 9 * MS),  # after the last call
    ]
    found = stages.loop_figures([way(began=20)], spans)
    assert {what: one["times"] for what, one in found.items()} == {
        "loop_delivery": 1,
        "loop_packing": 1,
        "loop_turn": 1,
    }
    assert [one["cpu_percent"] for one in found.values()] == [5.0, 25.0, 35.0]
    assert [one["slow_ms"] for one in found.values()] == [2.0, 6.0, 10.0]


def test_the_slowest_calls_are_a_twentieth_but_one_at_least() -> None:
    ways = [way(began=21 + number) for number in range(40)]
    assert [one.began // MS for one in stages.slowest(ways)] == [60, 59]
    assert stages.slowest(ways[:3]) == [ways[2]]


def test_a_note_that_nobody_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'bells 1'"):
        noted("bells 1")


@pytest.mark.parametrize("cell", [*stages.cells()], ids=lambda cell: cell.name)
def test_each_cell_has_a_table_and_a_backlog_that_outlasts_its_calls(cell: Stages) -> None:
    table = Topology.load({"queues": cell.plan().queues})
    assert table.queue("urgent").reserve == 1
    if cell.calls_at_once is not None:
        lasts = cell.messages / cell.unit * stages.BULK_SECONDS / stages.BULK_SLOTS
        assert cell.calls_at_once / CALLS_PER_SECOND < lasts
        assert cell.messages * cell.size_bytes <= BACKLOG_BYTES
