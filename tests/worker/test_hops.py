"""Each hop that can drop or hold messages is filled alone, and counted where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.sink import TABLE
from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import eventually, throughout

PREFETCH = TABLE["queues"]["few"]["prefetch"]


@pytest.fixture
def at(request: pytest.FixtureRequest, valkey: Server, tmp_path: Path) -> Iterator[Scene]:
    """A worker in which a task of the queue "few" has a slot until the gate opens."""
    options = ["--queues", "few,gathered"]
    with Scene(valkey.fresh_url(), tmp_path, concurrency=request.param, options=options) as at:
        at.send("basic.held", "first", "gate", queue="few")
        at.traces.next_start()
        yield at
        at.traces.open("gate", times=10)
        for queue in ("few", "gathered"):
            at.wait_until_all_ended(queue)


def filled(at: Scene) -> dict[str, tuple[int, int, int, int, int]]:
    """Return waiting, dropped and unacked of each queue, and what its worker holds and gathers."""
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name], limit=1)
    (shown,) = inspect._request("queue_credits").values()
    hops = {}
    for queue in ("bounded", "few", "gathered"):
        book, credit = at.ledger(queue), shown[queue]
        assert book.difference == 0
        counted = (book.waiting, book["dropped"], book.unacked, credit["held"], credit["buffered"])
        hops[queue] = counted
    return hops


@pytest.mark.parametrize("at", [1], indirect=True)
def test_a_full_list_of_the_broker_is_counted_there(at: Scene) -> None:
    before = filled(at)
    for number in range(8):
        at.send("count", str(number), queue="bounded")
    assert filled(at) == before | {"bounded": (5, 3, 0, 0, 0)}


@pytest.mark.parametrize("at", [PREFETCH + 1], indirect=True)
def test_a_full_credit_is_counted_there(at: Scene) -> None:
    before = filled(at)
    assert before["few"] == (0, 0, 1, 1, 0)
    for number in range(5):
        at.send("basic.held", str(number), "gate", queue="few")
    # Four are the prefetch; the two above it wait at the broker, though a slot is free.
    expected = before | {"few": (2, 0, 4, 4, 0)}
    eventually(lambda: filled(at) == expected)
    throughout(lambda: filled(at) == expected, 1)


@pytest.mark.parametrize("at", [2], indirect=True)
def test_a_batch_that_gathers_is_counted_there(at: Scene) -> None:
    before = filled(at)
    at.stop_consuming("gathered")
    # It comes with the others and takes the last slot, so they wait for one.
    at.send("basic.held", "second", "gate", queue="gathered")
    for number in range(7):
        at.send("gather", number, queue="gathered")
    at.app.control.add_consumer("gathered")
    expected = before | {"gathered": (0, 0, 8, 8, 7)}
    eventually(lambda: filled(at) == expected)
    throughout(lambda: filled(at) == expected, 1)
