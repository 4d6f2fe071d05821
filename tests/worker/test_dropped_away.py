"""The result backend is silent while dropped tasks wait for their final state."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Server, valkey_binary
from tests.support.station import station
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "lease_seconds": 3.0,
    "queues": {"default": {}, "first": {"max_length": 1, "overflow": "drop_newest"}},
}


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Server]:
    server = Server(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_what_waits_for_a_silent_backend_is_nobody_elses(
    valkey: Server, backend: Server, pool: str
) -> None:
    """A read of it takes five seconds, longer than the lease."""
    settings = {"table": TABLE, "result_backend": backend.fresh_url()}
    with station(valkey.fresh_url(), pool, 1, queues=["default"], settings=settings) as at:
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                at.send("add", 1, 1, queue="first")
            at.worker.wait_log("the final state of dropped messages cannot be stored", 20)
            eventually(lambda: at.broker.length("first.dropped") == 2)
        finally:
            os.kill(backend.pid, signal.SIGCONT)
        eventually(lambda: at.broker.length("first.dropped") == 0, 20)
        at.wait_until_settled()
        assert "messages taken over" not in at.worker.log
        assert at.broker.ledger("first").get("reclaimed", 0) == 0
