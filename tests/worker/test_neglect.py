"""A worker that lives but neglects: what it forgot goes back, what it has stays its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from celery import Celery

from tests.apps.basic import TABLE, Traces
from tests.support.broker import Broker
from tests.support.wait import eventually, throughout
from tests.support.worker import Worker

LEASE_SECONDS = 3.0
SETTINGS = {"table": {**TABLE, "lease_seconds": LEASE_SECONDS}}


def environment(url: str) -> Mapping[str, str]:
    return {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_SETTINGS": json.dumps(SETTINGS)}


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_message_that_the_pool_forgot_goes_back_and_runs(
    app: Celery, broker: Broker, traces: Traces, pool: str
) -> None:
    app.tasks["basic.mark"].delay("forgotten")
    env = {**environment(broker.url), "CELERIAC_TEST_FORGETS": "1"}
    with Worker("tests.apps.neglect", pool, 2, env=env):
        eventually(lambda: traces.counts() == {"forgotten": 1}, 20)
        eventually(broker.holds_nothing)
    ledger = broker.ledger("default")
    assert (ledger["given_back"], ledger["done"], ledger.get("reclaimed", 0)) == (1, 1, 0)


def test_a_parent_process_that_is_busy_for_leases_keeps_what_it_has(
    app: Celery, broker: Broker, traces: Traces
) -> None:
    env = environment(broker.url)
    with Worker("tests.apps.neglect", "prefork", 2, env=env) as worker:
        ask: Any = {"destination": [worker.name], "reply": True, "timeout": 10, "limit": 1}
        assert app.control.rate_limit("basic.held", "1/h", **ask)
        for name in ("runs", "waits"):
            app.tasks["basic.held"].delay(name, "gate")
        eventually(lambda: traces.counts("started") == {"runs": 1})
        eventually(lambda: broker.unacked("slow") == 2)
        seconds = 3 * LEASE_SECONDS
        with Worker("tests.apps.neglect", "threads", 1, env=env, queues=["slow"]):
            app.control.broadcast("block", {"seconds": seconds}, destination=[worker.name])
            eventually(lambda: not app.control.ping([worker.name], timeout=0.3))
            throughout(lambda: broker.unacked("slow") == 2, seconds)
        assert app.control.rate_limit("basic.held", "0", **ask)
        traces.open("gate", times=2)
        eventually(lambda: traces.counts() == {"runs": 1, "waits": 1})
        eventually(broker.holds_nothing)
    ledger = broker.ledger("slow")
    assert (ledger["done"], ledger.get("reclaimed", 0), ledger.get("given_back", 0)) == (2, 0, 0)
