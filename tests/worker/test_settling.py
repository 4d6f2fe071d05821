"""An ending reaches the broker at once, whatever the worker's loop does meanwhile."""

from __future__ import annotations

import pytest

from tests.support.servers import Server
from tests.support.station import station
from tests.support.wait import eventually
from tests.worker.conftest import POOLS

#: Longer than any ending may take; the task is still running when they are looked at.
BLOCKED_SECONDS = 6


@pytest.mark.parametrize("pool", POOLS)
def test_what_has_ended_is_settled_while_the_next_task_computes(pool: str, valkey: Server) -> None:
    with station(valkey.fresh_url(), pool, concurrency=1, queues=["default"]) as at:
        at.tell("revoke", "unwanted")
        at.send("add", 1, 2)
        at.send("fail", "no")
        at.send("rejects", "no")
        at.send("retried", "again", 1)
        at.send("add", 0, 0, expires=0.001)
        at.send("add", 0, 0, task_id="unwanted")
        at.send("blocks", "long", BLOCKED_SECONDS)
        at.send("add", 5, 6)  # it waits behind the long one
        assert at.traces.next_start() == "long"
        # What was retried may succeed before the long one.
        wanted = {"dead": 2, "retried": 1, "expired": 1, "revoked": 1}
        ledger = eventually(
            lambda: (
                (found := at.broker.ledger("default")).items() >= wanted.items()
                and found.get("done")
                and found
            )
        )
        assert "long" not in at.traces.counts(), f"it is over: {ledger}"


def test_what_a_worker_returns_is_settled_while_the_next_task_computes(valkey: Server) -> None:
    with station(valkey.fresh_url(), "solo", concurrency=1, queues=["default"]) as at:
        at.send("rejects", "not now", True)
        at.send("blocks", "long", BLOCKED_SECONDS)
        assert at.traces.next_start() == "long"
        eventually(lambda: at.broker.ledger("default").get("given_back") == 1)
        assert "long" not in at.traces.counts()
