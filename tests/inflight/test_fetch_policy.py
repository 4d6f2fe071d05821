from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from routing.inflight.fetch_policy import (
    ASK_AT_MOST,
    LISTEN_SECONDS,
    LOOK_SECONDS,
    SETTLE_COUNT,
    SETTLE_SECONDS,
    Allowance,
    Exchange,
    Listen,
    Rest,
    Situation,
    byte_allowances,
    endings_to_call,
    next_step,
    should_call,
)

allowances = st.builds(
    Allowance, queue=st.just("q"), credit=st.integers(-5, 5000), prefetch=st.integers(1, 5000)
)


@given(allowances)
def test_no_more_is_asked_than_there_is_credit(allowance: Allowance) -> None:
    assert 0 <= allowance.ask <= max(0, allowance.credit)
    assert allowance.ask <= ASK_AT_MOST


def test_the_only_slot_of_a_prefetch_of_one_is_refilled_at_once() -> None:
    assert should_call([Allowance("q", 1, 1)], endings=0, ending_age=0, since_last_call=0)


def test_a_single_free_place_of_many_waits_for_company() -> None:
    allowance = Allowance("q", 1, 100)
    assert not should_call([allowance], endings=1, ending_age=0.001, since_last_call=0.001)


@given(st.lists(allowances), st.integers(1, 10_000))
def test_an_ending_never_waits_longer_than_its_bound(
    open_ones: list[Allowance], endings: int
) -> None:
    assert should_call(open_ones, endings=endings, ending_age=SETTLE_SECONDS, since_last_call=0)


@given(st.lists(allowances), st.floats(0, 1))
def test_many_endings_leave_at_once(open_ones: list[Allowance], age: float) -> None:
    assert should_call(open_ones, endings=SETTLE_COUNT, ending_age=age, since_last_call=0)


@given(st.lists(allowances))
def test_credit_is_used_within_the_bound_however_small(open_ones: list[Allowance]) -> None:
    has_credit = any(one.credit > 0 for one in open_ones)
    called = should_call(open_ones, endings=0, ending_age=0, since_last_call=SETTLE_SECONDS)
    assert called is has_credit


QUEUES = ["a", "b", "c"]
held_bytes = st.dictionaries(
    st.sampled_from([*QUEUES, "not consumed any more"]), st.integers(0, 500)
)


@given(held_bytes, st.integers(6, 1000))
def test_what_holds_nothing_has_room_whatever_the_others_hold(
    held: dict[str, int], total: int
) -> None:
    allowances = byte_allowances(held, QUEUES, total=total)
    assert all(allowances[queue] >= total // 6 for queue in QUEUES if not held.get(queue))


@given(
    st.lists(st.tuples(st.sampled_from(QUEUES), st.floats(0, 1)), max_size=20),
    st.integers(6, 1000),
)
def test_queues_that_take_no_more_than_their_room_stay_within_the_total(
    takes: list[tuple[str, float]], total: int
) -> None:
    held: dict[str, int] = {}
    for queue, part in takes:
        allowance = byte_allowances(held, QUEUES, total=total)[queue]
        held[queue] = held.get(queue, 0) + int(allowance * part)
    assert sum(held.values()) <= total


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(0, SETTLE_COUNT - 1),
)
def test_as_long_as_fewer_have_ended_than_a_call_needs_there_is_none(
    queues: list[tuple[int, float]], waiting: int
) -> None:
    allowances = [
        Allowance(str(number), int(prefetch * part), prefetch, 1)
        for number, (prefetch, part) in enumerate(queues)
    ]

    def is_called(ended: int, endings: int) -> bool:
        after = [one._replace(credit=one.credit + ended) for one in allowances]
        return should_call(after, endings=endings, ending_age=0, since_last_call=0)

    if is_called(0, waiting):
        return
    needed = endings_to_call(allowances, endings=waiting)
    assert needed > 0
    assert not is_called(needed - 1, waiting + needed - 1)
    assert is_called(needed, waiting + needed)


def test_a_queue_without_room_in_bytes_may_be_called_after_any_ending() -> None:
    assert endings_to_call([Allowance("q", 0, 10, 0)], endings=0) == 0


situations = st.builds(
    Situation,
    allowances=st.lists(
        st.builds(
            Allowance,
            queue=st.sampled_from([*"abcdef"]),
            credit=st.integers(-5, 50),
            prefetch=st.integers(1, 50),
            size_bytes=st.integers(0, 100),
        ),
        max_size=6,
        unique_by=lambda one: one.queue,
    ),
    quiet=st.frozensets(st.sampled_from([*"abcdef"])),
    endings=st.integers(0, 100),
    ending_age=st.floats(0, 2),
    since_reply=st.floats(0, 2),
    since_look=st.floats(0, 3),
    since_ending=st.floats(0, 2),
    has_loop=st.booleans(),
    hears_others=st.booleans(),
)


@given(situations)
def test_a_step_asks_or_hears_every_queue_that_has_room_and_no_other(now: Situation) -> None:
    open_queues = {one.queue for one in now.allowances if one.credit > 0}
    match next_step(now):
        case Exchange(asked, quiet, looks_at_all):
            names = {one.queue for one in asked}
            assert names == (open_queues if looks_at_all else open_queues - now.quiet)
            # The bells of those without room are looked at, too.
            usable = {one.queue for one in now.allowances if one.size_bytes}
            assert {*quiet} == (usable & now.quiet) - names
        case Listen(queues, seconds):
            assert {*queues} == open_queues
            assert 0 < seconds <= LISTEN_SECONDS
        case Rest():
            assert now.has_loop, "nobody would wake it"


@given(situations)
def test_all_queues_are_asked_once_a_second(now: Situation) -> None:
    late = replace(now, since_look=LOOK_SECONDS, since_reply=LOOK_SECONDS)
    step = next_step(late)
    if any(one.credit > 0 for one in late.allowances):
        assert isinstance(step, Exchange)
        assert step.looks_at_all


@given(situations)
def test_nothing_that_has_ended_waits_for_longer_than_its_bound(now: Situation) -> None:
    ripe = replace(now, endings=max(1, now.endings), ending_age=SETTLE_SECONDS)
    assert isinstance(next_step(ripe), Exchange)


@given(situations)
def test_who_listens_has_nothing_to_fetch_that_it_knows_of(now: Situation) -> None:
    if isinstance(next_step(now), Listen):
        known = [one for one in now.allowances if one.credit > 0 and one.queue not in now.quiet]
        assert known == []
        assert not (now.endings and not now.has_loop)


@given(situations)
def test_a_rest_that_nothing_ends_is_looked_at_again(now: Situation) -> None:
    step = next_step(now)
    if isinstance(step, Rest) and (now.endings or any(one.credit > 0 for one in now.allowances)):
        assert step.looks_again
