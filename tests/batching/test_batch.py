"""Items, their outcomes, and what a call makes of what the function says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Signature
from hypothesis import given
from hypothesis import strategies as st

from batching import (
    Batch,
    BatchTask,
    InvalidOutcome,
    Item,
    OutcomeTwice,
    ResultCountError,
    ResultIdsError,
    ResultTypeError,
)
from batching.outcomes import Dead, Done, Failed, Outcome, Replaced, Retried
from batching.pool.call import call_function

Function = Callable[[Batch[int]], Any]


def outcomes(function: Function, count: int = 3) -> list[Outcome | None]:
    """What becomes of `count` items."""
    function.__name__ = "function"  # Celery makes a function of that name
    app = Celery(set_as_current=False)
    task = app.task(function, base=BatchTask, name="t", lazy=False, shared=False)
    items = [Item(str(number), number) for number in range(count)]
    call_function(task, items)
    return [item.outcome for item in items]


def error_of(outcome: Outcome | None) -> type[Exception]:
    assert isinstance(outcome, Failed)
    return type(outcome.error)


def errors(function: Function, count: int = 3) -> list[type[Exception]]:
    return [error_of(outcome) for outcome in outcomes(function, count)]


def test_items_that_the_function_says_nothing_about_are_done() -> None:
    assert outcomes(lambda batch: None) == [Done(None)] * 3


def test_each_item_has_its_own_outcome() -> None:
    def function(batch: Batch[int]) -> None:
        batch[0].done("yes")
        batch[1].fail(error)
        batch[2].retry(countdown=5)

    error = ValueError("no")
    assert outcomes(function) == [Done("yes"), Failed(error), Retried(5)]


def test_a_returned_sequence_gives_each_item_its_result() -> None:
    assert outcomes(lambda batch: [item.value * 2 for item in batch]) == [Done(0), Done(2), Done(4)]
    assert outcomes(lambda batch: (1, 2, 3)) == [Done(1), Done(2), Done(3)]


@pytest.mark.parametrize("got", [[], [1], [1, 2, 3, 4]])
def test_a_sequence_of_the_wrong_length_is_an_error_of_every_item(got: list[int]) -> None:
    assert errors(lambda batch: got) == [ResultCountError] * 3


@pytest.mark.parametrize("got", ["abc", b"abc", {1, 2, 3}, 3, iter([1, 2, 3]), object()])
def test_what_has_no_results_in_order_is_an_error_of_every_item(got: object) -> None:
    assert errors(lambda batch: got) == [ResultTypeError] * 3


@pytest.mark.parametrize("kind", [deque, lambda some: dict(enumerate(some)).values()])
def test_whatever_has_a_length_and_an_order_gives_results(kind: Callable[[Any], Any]) -> None:
    assert outcomes(lambda batch: kind([7, 8, 9])) == [Done(7), Done(8), Done(9)]


def test_results_may_be_given_by_id() -> None:
    def function(batch: Batch[int]) -> dict[str, int]:
        batch[1].fail(error)
        return {item.id: item.value * 2 for item in reversed(batch) if item is not batch[1]}

    error = ValueError("no")
    assert outcomes(function) == [Done(0), Failed(error), Done(4)]


@pytest.mark.parametrize("got", [{}, {"0": 1, "1": 2}, {"0": 1, "1": 2, "2": 3, "x": 4}, {0: 1}])
def test_results_by_id_are_for_all_items_and_no_others(got: dict[Any, int]) -> None:
    assert errors(lambda batch: got) == [ResultIdsError] * 3


def test_exceptions_among_the_results_are_failures() -> None:
    error = ValueError("no")
    assert outcomes(lambda batch: [1, error, None]) == [Done(1), Failed(error), Done(None)]
    assert outcomes(lambda batch: {"0": error, "1": 1, "2": 2})[0] == Failed(error)


def test_what_ends_a_process_is_no_result() -> None:
    (first, *others) = outcomes(lambda batch: [SystemExit(1), 1, 2])
    assert error_of(first) is InvalidOutcome
    assert others == [Done(1), Done(2)]


def test_none_among_the_results_says_nothing_about_an_item_that_has_its_outcome() -> None:
    def function(batch: Batch[int]) -> list[None]:
        batch[1].fail(error)
        batch[2].done("kept")
        return [None, None, None]

    error = ValueError("no")
    assert outcomes(function) == [Done(None), Failed(error), Done("kept")]


def test_an_item_may_be_replaced() -> None:
    signature = Signature("t.other", args=(1,))

    def function(batch: Batch[int]) -> None:
        batch[0].replace(signature)
        with pytest.raises(InvalidOutcome, match="expected a signature"):
            batch[1].replace("t.other")  # type: ignore[arg-type]

    assert outcomes(function) == [Replaced(signature), Done(None), Done(None)]


def test_returning_the_batch_itself_is_an_error() -> None:
    assert errors(lambda batch: batch) == [ResultTypeError] * 3


def test_a_second_outcome_fails_its_item_and_ends_the_call_where_nobody_catches_it() -> None:
    def function(batch: Batch[int]) -> None:
        batch[1].done("kept")
        batch[0].done()
        batch[0].fail(ValueError())

    first, second, third = outcomes(function)
    assert second == Done("kept")
    for outcome in (first, third):
        assert error_of(outcome) is OutcomeTwice


def test_swallowing_the_error_of_a_second_outcome_fails_the_item_all_the_same() -> None:
    def function(batch: Batch[int]) -> None:
        batch[1].done()
        with pytest.raises(OutcomeTwice, match="already has the outcome"):
            batch[1].done()

    first, second, third = outcomes(function)
    assert first == third == Done(None)
    assert error_of(second) is OutcomeTwice


def test_a_result_is_a_second_outcome_for_an_item_that_has_one() -> None:
    def function(batch: Batch[int]) -> list[int]:
        batch[2].fail(ValueError())
        return [1, 2, 3]

    first, second, third = outcomes(function)
    assert (first, second) == (Done(1), Done(2))
    assert error_of(third) is OutcomeTwice


def test_when_the_function_raises_items_keep_the_outcomes_they_have() -> None:
    def function(batch: Batch[int]) -> None:
        batch[0].done(1)
        raise error

    error = RuntimeError("down")
    assert outcomes(function) == [Done(1), Failed(error), Failed(error)]


@pytest.mark.parametrize("wrong", ["text", None, ValueError, SystemExit()])
def test_only_an_exception_instance_can_be_a_failure(wrong: Any) -> None:
    item = Item("1", 1)
    with pytest.raises(InvalidOutcome, match="expected an exception instance"):
        item.fail(wrong)
    assert item.outcome is None


@pytest.mark.parametrize("wrong", [-1, "5", True])
def test_a_countdown_is_a_number_of_seconds(wrong: Any) -> None:
    with pytest.raises(InvalidOutcome, match="countdown must be seconds"):
        Item("1", 1).retry(countdown=wrong)


@pytest.mark.parametrize("wrong", [None, ValueError("no"), 5])
def test_a_reason_to_be_dead_is_in_words(wrong: Any) -> None:
    item = Item("1", 1)
    with pytest.raises(InvalidOutcome, match="expected a reason in words"):
        item.dead(wrong)
    assert item.outcome is None
    item.dead("no hope")
    assert item.outcome == Dead("no hope")


def test_the_function_is_not_called_without_items() -> None:
    def function(batch: Batch[int]) -> None:
        raise AssertionError

    assert outcomes(function, count=0) == []


def test_a_batch_is_a_sequence_of_its_items() -> None:
    items = [Item(str(number), number) for number in range(4)]
    batch = Batch(items)
    assert len(batch) == 4
    assert batch[1] is items[1]
    assert list(batch[1:3]) == items[1:3]
    assert batch.values == [0, 1, 2, 3]
    assert items[2] in batch


@given(said=st.lists(st.sampled_from(["done", "fail", "retry", "nothing"]), min_size=1))
def test_every_item_ends_exactly_as_the_function_said(said: list[str]) -> None:
    def function(batch: Batch[int]) -> None:
        for item, word in zip(batch, said, strict=True):
            match word:
                case "done":
                    item.done(item.value)
                case "fail":
                    item.fail(KeyError(item.value))
                case "retry":
                    item.retry()

    kinds = {"done": Done, "fail": Failed, "retry": Retried, "nothing": Done}
    found = outcomes(function, len(said))
    assert [type(outcome) for outcome in found] == [kinds[word] for word in said]
