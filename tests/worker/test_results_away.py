"""The result backend is away while a task ends: its work is done, and must count as done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.servers import Server, valkey_binary
from tests.support.station import station
from tests.support.wait import eventually


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Server]:
    """A server for results alone, which can be away."""
    server = Server(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_success_waits_for_the_backend_and_never_becomes_a_failure(
    valkey: Server, backend: Server, pool: str
) -> None:
    url = backend.fresh_url()
    with station(valkey.fresh_url(), pool, 1, settings={"result_backend": url}) as at:
        kept = at.send("held", "kept", "gate", queue="bulk").id
        at.traces.next_start()
        backend.stop()
        at.traces.open("gate")
        at.worker.wait_log("waiting for the result backend")
        backend.start()
        at.wait_until_settled(timeout=40)
        ledger = at.broker.ledger("bulk")
        assert (ledger["done"], ledger.get("dead", 0)) == (1, 0)
        assert at.traces.counts("started") == {"kept": 1}
        with redis.Redis.from_url(url) as client:
            meta = eventually(lambda: client.get(f"celery-task-meta-{kept}"))
        assert b'"SUCCESS"' in meta
