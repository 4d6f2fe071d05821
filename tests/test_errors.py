from __future__ import annotations

import pickle

import pytest
from kombu.exceptions import OperationalError

import routing
from routing import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.QueueFull("bulk", 10, 10, 2.5),
        errors.QueueDraining("bulk", 10, 10, 2.5),
        errors.BrokerUnreachable("away"),
        errors.UnknownLevel("no such level"),
        errors.TopologyError("bad"),
        errors.ScriptError("bad"),
        errors.PublishRefused("1 of 2", [1, 2]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: errors.RoutingError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_full_queue_says_what_happened_and_what_to_do() -> None:
    assert str(errors.QueueFull("bulk", 10_000, 10_000, 1.0)) == (
        "queue 'bulk' is full: 10000 of at most 10000 messages wait; try again in about 1.0 s, "
        "add workers, or raise max_length"
    )


def test_a_full_queue_says_when_nobody_works_on_it() -> None:
    error = errors.QueueFull("bulk", 2, 2, 60.0, is_consumed=False)
    assert str(error) == (
        "queue 'bulk' is full: 2 of at most 2 messages wait; no live worker consumes it: start "
        "one, or raise max_length"
    )


def test_everything_that_is_raised_is_a_routing_error_with_a_remedy() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.RoutingError)
        assert kind.__doc__


def test_code_that_catches_celerys_and_pythons_errors_keeps_working() -> None:
    assert issubclass(errors.BrokerUnreachable, OperationalError)
    assert issubclass(errors.TopologyError, ValueError)
    assert issubclass(errors.UnknownLevel, ValueError)


def test_the_public_names_exist_and_are_explained_in_the_tour() -> None:
    for name in routing.__all__:
        assert getattr(routing, name).__doc__, name


def test_a_group_that_never_fits_is_told_so() -> None:
    error = errors.QueueFull("q", 0, 3, 1.0, "messages", 5)
    assert "got 5 that go together or not at all" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
