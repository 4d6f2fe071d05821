"""When a batch is flushed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.consumer.flush import (
    Flush,
    FlushReason,
    Limits,
    Wait,
    decide_flush,
    exceeded,
    is_full,
)


@dataclass(frozen=True)
class Gathered:
    count: int
    size_bytes: int
    due_at: float
    cost: float = 0.0


LIMITS = Limits(max_size=10, max_bytes=1_000, max_wait_seconds=2.0)


def held(count: int = 1, size_bytes: int = 100, due_at: float = 2.0) -> Gathered:
    return Gathered(count, size_bytes, due_at)


def test_a_full_batch_goes_at_once() -> None:
    assert decide_flush(LIMITS, held(10), 0.0, idle=False, backlog=True) == Flush(FlushReason.COUNT)


def test_a_batch_full_by_bytes_goes_at_once() -> None:
    assert decide_flush(LIMITS, held(2, 1_000), 0.0, idle=False, backlog=True) == Flush(
        FlushReason.BYTES
    )


def test_the_oldest_item_never_waits_longer_than_max_wait() -> None:
    assert decide_flush(LIMITS, held(), 2.0, idle=False, backlog=True) == Flush(FlushReason.WAIT)


def test_an_idle_slot_takes_what_there_is_when_nothing_more_is_on_its_way() -> None:
    assert decide_flush(LIMITS, held(), 0.0, idle=True, backlog=False) == Flush(FlushReason.IDLE)


@pytest.mark.parametrize(("idle", "backlog"), [(True, True), (False, False), (False, True)])
def test_it_waits_while_slots_are_busy_or_more_is_on_its_way(idle: bool, backlog: bool) -> None:
    assert decide_flush(LIMITS, held(due_at=7.0), 6.0, idle=idle, backlog=backlog) == Wait(7.0)


def test_an_item_bigger_than_max_bytes_fits_only_into_an_empty_batch() -> None:
    assert exceeded(LIMITS, Gathered(0, 0, 2.0), 5_000) is None
    assert exceeded(LIMITS, held(1, 1), 5_000) is FlushReason.BYTES


def test_items_share_a_call_up_to_its_cost_and_one_that_costs_more_goes_alone() -> None:
    limits = replace(LIMITS, max_cost=10.0)
    assert exceeded(limits, Gathered(0, 0, 2.0), 1, cost=50.0) is None
    assert exceeded(limits, Gathered(2, 2, 2.0, cost=8.0), 1, cost=2.0) is None
    assert exceeded(limits, Gathered(2, 2, 2.0, cost=8.0), 1, cost=2.5) is FlushReason.COST
    assert is_full(limits, Gathered(1, 1, 2.0, cost=50.0)) is FlushReason.COST


def test_an_idle_slot_does_not_take_fewer_than_min_size_before_they_have_waited() -> None:
    limits = replace(LIMITS, min_size=3)
    assert decide_flush(limits, held(2), 1.0, idle=True, backlog=False) == Wait(2.0)
    assert decide_flush(limits, held(3), 1.0, idle=True, backlog=False) == Flush(FlushReason.IDLE)
    assert decide_flush(limits, held(2), 2.0, idle=True, backlog=False) == Flush(FlushReason.WAIT)


@given(
    count=st.integers(1, 20),
    size=st.integers(0, 2_000),
    due_at=st.floats(0, 100),
    now=st.floats(0, 200),
    idle=st.booleans(),
    backlog=st.booleans(),
)
def test_it_waits_only_with_room_left_and_time_left(
    count: int, size: int, due_at: float, now: float, idle: bool, backlog: bool
) -> None:
    decision = decide_flush(LIMITS, Gathered(count, size, due_at), now, idle=idle, backlog=backlog)
    if isinstance(decision, Wait):
        assert is_full(LIMITS, Gathered(count, size, due_at)) is None
        assert now < decision.until == due_at
        assert backlog or not idle
