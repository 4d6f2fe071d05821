"""What is known about each queue, from replies and from bells."""

from __future__ import annotations

import pytest

from routing.inflight.sightings import STALE_SECONDS, Sightings
from routing.redis.values import Exchanged


def reply(heard: tuple[str, ...] = (), **left: int) -> Exchanged:
    return Exchanged(server_ms=0, left=left, arrivals=[], heard=heard)


def look(sightings: Sightings, answer: Exchanged, *, age: float = 0.0, at_all: bool = True) -> None:
    sightings.take(answer, age_seconds=age, looked_at_all=at_all)


def test_a_queue_that_had_nothing_is_quiet_until_its_bell_is_heard() -> None:
    sightings = Sightings()
    look(sightings, reply(a=0, b=2, c=0))
    assert sightings.quiet == {"a", "c"}
    look(sightings, reply(heard=("a",), b=0), at_all=False)
    assert sightings.quiet == {"b", "c"}
    sightings.hear(["c"])
    assert sightings.quiet == {"b"}


@pytest.mark.parametrize("age", [0.0, 2 * STALE_SECONDS])
def test_it_is_quiet_as_well_when_the_loop_was_held_up(age: float) -> None:
    """Whatever came meanwhile has rung its bell, which is looked at."""
    sightings = Sightings()
    look(sightings, reply(a=0), age=age)
    sightings.held_up(2 * STALE_SECONDS)
    assert sightings.quiet == {"a"}
    assert sightings.is_stale


def test_what_was_not_asked_is_known_no_more() -> None:
    sightings = Sightings()
    look(sightings, reply(a=500, b=0))
    assert sightings.left("a") == 500
    look(sightings, reply(b=1), at_all=False)
    assert sightings.left("a") == 0
    assert sightings.left("b") == 1


def test_nobody_knows_of_a_queue_without_room_whether_it_is_empty() -> None:
    sightings = Sightings()
    look(sightings, reply(a=0, b=0))
    look(sightings, reply(b=0))
    assert sightings.quiet == {"b"}
