"""What a refused producer is told: how fast a queue is worked off, and whether anybody does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from routing.redis.consumers import Consumer
from routing.transport.overflow import retry_after_seconds
from tests.support.messages import numbered
from tests.support.rig import Rig
from tests.support.servers import Server

PACE = "celeriac:pace:small"


@pytest.fixture
def rig(valkey: Server) -> Iterator[Rig]:
    rig = Rig(valkey.fresh_url())
    yield rig
    rig.broker.client.close()


def announce(rig: Rig, *, seconds: float = 60) -> int:
    worker = str(Consumer("bell", 2, "w@host"))
    return rig.commands.announce(rig.client, worker, ["small"], seconds=seconds)


def end(rig: Rig, count: int) -> None:
    rig.client.hincrby("celeriac:ledger:small", "done", count)


def refuse(rig: Rig) -> tuple[float, int | None]:
    pushed = rig.push(numbered(5, queue="small"), "small")
    assert pushed.accepted < 5
    return pushed.pace_ms, pushed.consumers


def test_nobody_knows_the_pace_before_anything_has_ended(rig: Rig) -> None:
    assert refuse(rig) == (0, 0)
    announce(rig)
    assert refuse(rig) == (0, 1)


def test_the_pace_is_that_of_the_last_seconds(rig: Rig) -> None:
    announce(rig)
    now = rig.server_ms()
    rig.client.hset(PACE, mapping={"at": now - 8_000, "last_at": now - 3_000})
    end(rig, 16)
    pace_ms, _ = refuse(rig)
    assert pace_ms == pytest.approx(500, rel=0.2)


def test_each_moment_is_noted_some_seconds_after_the_last(rig: Rig) -> None:
    announce(rig)
    now = rig.server_ms()
    end(rig, 10)
    noted = {"at": now - 12_000, "ended": 0, "last_at": now - 6_000, "last_ended": 4}
    rig.client.hset(PACE, mapping=noted)
    announce(rig)
    found = {name.decode(): int(text) for name, text in rig.client.hgetall(PACE).items()}
    assert (found["at"], found["ended"], found["last_ended"]) == (now - 6_000, 4, 10)
    assert found["last_at"] >= now
    announce(rig)
    assert found == {name.decode(): int(text) for name, text in rig.client.hgetall(PACE).items()}


def test_what_was_noted_long_ago_says_nothing(rig: Rig) -> None:
    announce(rig)
    now = rig.server_ms()
    rig.client.hset(PACE, mapping={"at": now - 90_000, "ended": 0, "last_at": now - 80_000})
    end(rig, 1000)
    assert refuse(rig)[0] == 0


def test_a_worker_that_says_no_more_is_forgotten(rig: Rig) -> None:
    announce(rig, seconds=0.05)
    rig.let_pass(0.06)
    assert refuse(rig)[1] == 0
    announce(rig)
    assert rig.client.zcard("celeriac:consumers:small") == 1
    announce(rig, seconds=0)
    assert rig.client.zcard("celeriac:consumers:small") == 0


def test_it_is_tried_again_when_the_pace_has_made_room(rig: Rig) -> None:
    announce(rig)
    now = rig.server_ms()
    rig.client.hset(PACE, mapping={"at": now - 8_000, "last_at": now - 3_000})
    end(rig, 4)
    pushed = rig.push(numbered(8, queue="small"), "small")
    assert pushed.accepted == 3
    assert retry_after_seconds(pushed, 5) == pytest.approx(10, rel=0.2)


def test_where_nobody_works_it_takes_the_longest_time(rig: Rig) -> None:
    pushed = rig.push(numbered(5, queue="small"), "small")
    assert retry_after_seconds(pushed, 2) == 60


def test_a_queue_without_messages_costs_no_pace(rig: Rig) -> None:
    rig.push(numbered(2, queue="q"), "q")
    assert rig.client.exists("celeriac:pace:q") == 0
