"""A dead letter that the broker never takes holds up nothing else, and is no reason to hurry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps.basic import close
from tests.apps.refusals import TABLE, create
from tests.support.servers import Server, valkey_binary
from tests.support.wait import elapse, eventually
from tests.support.worker import Worker

#: The leases are renewed three times while nothing else happens, and bells are waited for.
LEASE_SECONDS = 3


@pytest.fixture
def server(tmp_path: Any) -> Iterator[Server]:
    """A broker that has to do with nobody else: its calls are counted."""
    server = Server(valkey_binary(), tmp_path)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_dead_letter_that_is_refused_holds_up_nothing(server: Server, pool: str) -> None:
    url, store = server.fresh_url(), server.fresh_url()
    settings: dict[str, Any] = {"table": {**TABLE, "lease_seconds": LEASE_SECONDS}}
    env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_STORE": store}
    env["CELERIAC_TEST_SETTINGS"] = json.dumps(settings)
    app = create(url, store=store, **settings)
    attempt = app.tasks["refusals.attempt"]
    client = server.client(int(url.rpartition("/")[2]))
    with client, Worker("tests.apps.refusals", pool, env=env) as worker:
        client.set("bulk.dead", "somebody's own")
        attempt.delay("lost", "fail", 0.01)
        eventually(lambda: "refused to settle" in worker.log)
        before = scripts(client)
        elapse(LEASE_SECONDS)
        assert scripts(client) - before < 100
        assert attempt.delay("good", "succeed", 0.01).get(timeout=10) == "good"
        eventually(
            lambda: client.hlen("unacked") == 1, message="the letter that is refused is kept"
        )
        assert "(key bulk.dead, expected a list)" in worker.log
        assert "could not be renewed" not in worker.log
        assert worker.running
        client.delete("bulk.dead")
        eventually(lambda: client.llen("bulk.dead") == 1, 10)
        assert not client.hlen("unacked")
    close(app)


def scripts(client: Any) -> int:
    """Return how many scripts the server has run."""
    return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])
