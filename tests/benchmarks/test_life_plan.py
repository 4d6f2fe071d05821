"""What the scenario ``life`` sends and lets happen, whatever its length, pool and events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.life.plan import (
    BATCHED,
    BURST_TIMES,
    CONCURRENCY,
    COURSES,
    LOAD,
    LONG_RUN_SECONDS,
    PLAIN,
    RATES,
    URGENT,
    WARM_UP_SECONDS,
    Behaviour,
    Event,
    Plan,
)

LEAST = Plan().least_seconds

plans = st.builds(
    Plan,
    pool=st.sampled_from(list(CONCURRENCY)),
    seconds=st.floats(LEAST, 900),
    without=st.sets(st.sampled_from(Event)),
)


@given(plans)
def test_each_event_is_healed_before_the_next_and_before_the_load_ends(plan: Plan) -> None:
    happenings = list(plan.happenings())
    for one, next_ in pairwise(happenings):
        assert one.at <= one.until <= one.healed_at <= next_.at + 1e-6
    for one in happenings:
        (course, *_) = COURSES[one.event]
        assert one.healed_at - one.at >= course.lasts + course.heals - 1e-6
        assert plan.idle_seconds < one.at < one.healed_at < plan.load_ends


@given(plans)
def test_all_events_of_the_plan_happen_and_no_other(plan: Plan) -> None:
    happening = {one.event for one in plan.happenings()}
    assert happening == {event for event in Event if plan.has(event)} - {Event.BURST}
    assert bool(plan.bursts()) == plan.has(Event.BURST)


@given(plans)
def test_no_process_is_replaced_from_before_the_second_half_of_a_long_run_on(plan: Plan) -> None:
    begin = plan.idle_seconds + plan.seconds / 2 - WARM_UP_SECONDS
    late = [one for one in plan.happenings() if one.healed_at > begin + 1e-6]
    assert plan.seconds < LONG_RUN_SECONDS or not any(
        COURSES[one.event][0].replaces for one in late
    )


def test_a_plan_is_the_same_in_every_process() -> None:
    plan = Plan(pool="threads", seconds=50, without=[Event.SINK])
    assert Plan.from_json(plan.to_json()).messages() == plan.messages()


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_the_trickle_takes_its_share_of_the_slots(pool: str) -> None:
    plan = Plan(pool=pool, seconds=100, without=[Event.BURST])  # type: ignore[arg-type]
    messages = [message for message in plan.messages() if message.queue != URGENT]
    plain = sum(message.run_seconds for message in messages if message.queue == PLAIN)
    batched = sum(message.queue == BATCHED for message in messages)
    load = (plain + batched * 0.0005) / (plan.slots * 100)
    assert load == pytest.approx(LOAD, rel=0.05)
    assert len(messages) / 100 == pytest.approx(LOAD * plan.capacity, rel=0.01)


@pytest.mark.parametrize("pool", CONCURRENCY)
def test_long_tasks_run_when_workers_are_ended(pool: str) -> None:
    plan = Plan(pool=pool)  # type: ignore[arg-type]
    plain = [message for message in plan.messages() if message.queue == PLAIN]
    for one in plan.happenings():
        if COURSES[one.event][0].replaces:
            running = [m for m in plain if m.at < one.at < m.at + m.run_seconds]
            assert sum(m.run_seconds > 2 for m in running) >= 2


def test_a_burst_is_ten_times_the_trickle() -> None:
    plan = Plan()
    begin = plan.bursts()[0]
    burst = [m for m in plan.messages() if m.is_burst and begin <= m.at < begin + 0.3]
    assert len(burst) == round(BURST_TIMES * (RATES[PLAIN] + RATES[BATCHED]) * 0.3)


def test_a_short_run_has_messages_and_tasks_of_every_size() -> None:
    messages = Plan().messages()
    sizes = [message.size_bytes for message in messages]
    runs = [message.run_seconds for message in messages if message.queue == PLAIN]
    assert len(messages) >= 10_000
    assert min(sizes) == 200
    assert max(sizes) > 400_000
    assert min(runs) < 0.002
    assert max(runs) > 4.0
    assert {message.behaviour for message in messages} == set(Behaviour)
    assert [message.number for message in messages] == list(range(len(messages)))
