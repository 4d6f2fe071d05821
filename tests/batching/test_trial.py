"""The search for what is at fault: everything ends once, few calls, and only the guilty pay."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batching.consumer.trial import FEW, Call, Trial


def called(trial: Trial[str]) -> Call[str]:
    call = trial.next_call()
    assert call is not None
    return call


class Run:
    """Makes the calls of a trial, and counts what became of each item."""

    def __init__(
        self, count: int, fails: Callable[[Sequence[int]], bool], **options: object
    ) -> None:
        self.items = [f"item {n}" for n in range(count)]
        self._fails = fails
        self.trial: Trial[str] = Trial(self.items, **options)  # type: ignore[arg-type]
        self.done: Counter[int] = Counter()
        self.charged: Counter[int] = Counter()
        self.sizes: list[int] = []

    def go(self) -> Run:
        while (call := self.trial.next_call()) is not None:
            numbers = [self.items.index(item) for item in call.items]
            assert numbers == sorted(numbers)
            assert numbers
            self.sizes.append(len(numbers))
            assert not call.is_charged or len(numbers) == 1
            if not self._fails(numbers):
                self.done.update(numbers)
                self.trial.succeeded()
            elif call.is_charged:
                self.charged.update(numbers)
                self.trial.succeeded()  # it has ended by its own policy
            else:
                self.trial.failed(call.items)
        return self

    @property
    def left(self) -> list[int]:
        return [self.items.index(item) for item in self.trial.left]


def bound(count: int) -> float:
    return 2 * math.log2(count) + 2


def among(*poison: int) -> Callable[[Sequence[int]], bool]:
    return lambda numbers: not set(poison).isdisjoint(numbers)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10, 100, 500])
def test_one_item_at_fault_costs_few_calls_wherever_it_is(count: int) -> None:
    for poison in range(count):
        run = Run(count, among(poison), has_failed=True).go()
        assert run.charged == {poison: 1}
        assert run.done == dict.fromkeys(set(range(count)) - {poison}, 1)
        assert len(run.sizes) <= bound(count)


@pytest.mark.parametrize("count", [5, 7, 10, 100, 500])
def test_the_item_that_the_function_was_at_is_looked_at_once_the_world_is_known_to_be_well(
    count: int,
) -> None:
    for poison in range(count):
        hinted = Run(count, among(poison), has_failed=True, suspect=f"item {poison}").go()
        assert hinted.charged == {poison: 1}
        assert hinted.done == dict.fromkeys(set(range(count)) - {poison}, 1)
        assert len(hinted.sizes) <= 3 or count <= 2 * FEW
        wrong = (poison + count // 2) % count
        misled = Run(count, among(poison), has_failed=True, suspect=f"item {wrong}").go()
        assert misled.charged == {poison: 1}
        assert len(misled.sizes) <= bound(count)
    away = Run(count, lambda _: True, has_failed=True, suspect="item 0").go()
    assert away.trial.is_world
    assert len(away.sizes) + 1 <= math.log2(count) + 1


def test_three_at_fault_alike_are_found_in_different_halves() -> None:
    chance = random.Random(7)
    for _ in range(300):
        poison = chance.sample(range(500), 3)
        run = Run(500, among(*poison), has_failed=True).go()
        if run.trial.is_world:  # two of them were taken for it, which another time will mend
            assert set(poison) - set(run.left) == set(run.charged)
            continue
        assert run.charged == dict.fromkeys(poison, 1)
        assert run.done == dict.fromkeys(set(range(500)) - set(poison), 1)
        assert len(run.sizes) <= 3 * bound(500)


@pytest.mark.parametrize("count", [3, 4, 10, 100, 500])
def test_when_nothing_succeeds_nobody_is_charged(count: int) -> None:
    run = Run(count, lambda _: True, has_failed=True).go()
    assert run.trial.is_world
    assert not run.charged
    assert run.left == list(range(count))
    assert len(run.sizes) + 1 <= math.log2(count) + 1 or count < 5
    later = Run(count, lambda _: True, begins_with_half=True).go()
    assert later.sizes[0] == count // 2
    assert later.trial.is_world
    assert len(later.sizes) <= math.log2(count) + 1 or count < 5


def test_a_world_that_is_well_again_takes_two_calls() -> None:
    run = Run(500, lambda _: False, begins_with_half=True).go()
    assert run.sizes == [250, 250]


@given(
    st.integers(2, 60),
    st.sets(st.integers(0, 59), max_size=60),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_item_ends_once_or_is_for_later(
    count: int, poison: set[int], has_failed: bool, begins_with_half: bool, singly: bool
) -> None:
    bad = {number for number in poison if number < count}
    options = {"has_failed": has_failed and bool(bad), "begins_with_half": begins_with_half}
    run = Run(count, among(*bad), **options, singly=singly).go()
    left = set(run.left)
    assert bool(left) == run.trial.is_world
    assert set(run.charged) == bad - left
    assert run.done == dict.fromkeys(set(range(count)) - bad - left, 1)
    assert all(times == 1 for times in run.charged.values())
    assert len(run.sizes) <= 2 * count
    if singly:
        assert set(run.sizes) == {1}


@given(st.integers(2, 60), st.integers(0, 59), st.integers(2, 60))
def test_what_ended_a_worker_is_called_in_half_the_company_until_it_is_alone(
    count: int, killer: int, company: int
) -> None:
    killer %= count
    group = {(killer + n) % count for n in range(min(company, count))}
    options = {"company": lambda item: len(group) if int(item.split()[1]) in group else 0}
    run = Run(count, among(killer), **options)
    assert len(called(run.trial).items) == max(1, len(group) // 2)
    run = Run(count, among(killer), **options).go()
    assert run.charged == {killer: 1}
    assert sum(run.done.values()) == count - 1


def test_items_that_end_before_the_call_fails_are_not_called_again() -> None:
    trial: Trial[str] = Trial(items := [f"item {n}" for n in range(8)])
    call = called(trial)
    trial.failed(call.items[3:])
    assert trial.left == items[3:]
    call = called(trial)
    assert list(call.items) == items[3:5]
    trial.failed(call.items[1:])  # one of them succeeded: the world is well
    call = called(trial)
    assert list(call.items) == items[4:5]
    assert call.is_charged


def test_one_item_that_is_left_of_a_call_is_charged() -> None:
    trial: Trial[str] = Trial(["a", "b"])
    called(trial)
    trial.failed(["b"])
    call = called(trial)
    assert (call.items, call.is_charged) == (["b"], True)
    trial.succeeded()
    assert trial.next_call() is None
