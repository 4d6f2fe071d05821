"""Each hop that can drop or hold messages is filled alone, and counted where it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import eventually, throughout


@pytest.fixture(scope="module")
def at(valkey: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A worker with one slot, which a task of the queue "few" holds until the gate opens."""
    directory: Path = tmp_path_factory.mktemp("hops")
    options = ["--queues", "few,gathered"]
    with Scene(valkey.fresh_url(), directory, concurrency=1, options=options) as at:
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


def test_a_full_list_of_the_broker_is_counted_there(at: Scene) -> None:
    before = filled(at)
    for number in range(8):
        at.send("count", str(number), queue="bounded")
    assert filled(at) == before | {"bounded": (5, 3, 0, 0, 0)}


def test_a_full_credit_is_counted_there(at: Scene) -> None:
    before = filled(at)
    assert before["few"] == (0, 0, 1, 1, 0)
    for number in range(5):
        at.send("basic.held", str(number), "gate", queue="few")
    # Four are the prefetch; the two above it wait at the broker.
    expected = before | {"few": (2, 0, 4, 4, 0)}
    eventually(lambda: filled(at) == expected)
    throughout(lambda: filled(at) == expected, 1)


def test_a_batch_that_gathers_is_counted_there(at: Scene) -> None:
    before = filled(at)
    for number in range(7):
        at.send("gather", number, queue="gathered")
    expected = before | {"gathered": (0, 0, 7, 7, 7)}
    eventually(lambda: filled(at) == expected)
    throughout(lambda: filled(at) == expected, 1)
