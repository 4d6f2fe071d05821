"""A worker tells how long messages had waited in each queue when they started."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from routing.worker.waits import two_digits
from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import throughout
from tests.worker.conftest import POOLS


def queue_waits(at: Scene) -> Any:
    inspect = at.app.control.inspect(timeout=5, destination=[at.worker.name], limit=1)
    (report,) = inspect._request("queue_waits").values()
    return report


@pytest.mark.parametrize("pool", POOLS)
def test_waits_are_counted_from_the_push_to_the_start_for_tasks_and_for_items_of_batches(
    valkey: Server, tmp_path: Path, pool: str
) -> None:
    options = ["--queues", "few,gathered"]
    with Scene(valkey.fresh_url(), tmp_path, pool=pool, concurrency=1, options=options) as at:
        at.send("basic.held", "first", "gate", queue="few")
        at.traces.next_start()
        at.send("basic.held", "second", "gate", queue="few")
        for number in range(3):
            at.send("gather", number, queue="gathered")
        sent = time.monotonic()
        throughout(lambda: "second" not in at.traces.counts(), 0.3)
        waited_ms = (time.monotonic() - sent) * 1000
        at.traces.open("gate", times=2)
        for queue in ("few", "gathered"):
            at.wait_until_all_ended(queue)
        waits = queue_waits(at)
    assert waits.keys() == {"few", "gathered"}
    assert (waits["few"]["starts"], waits["gathered"]["starts"]) == (2, 3)
    # A stamp has whole milliseconds, and the server's clock is known to within a round trip.
    least = two_digits(waited_ms * 0.8)
    assert waits["few"]["p99_ms"] >= least
    assert min(map(int, waits["gathered"]["histogram"])) >= least
    assert min(map(int, waits["few"]["histogram"])) < least
