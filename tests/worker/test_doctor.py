"""`celery doctor` on a live platform: what it finds, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps import stock
from tests.apps.basic import close
from tests.support.broker import Broker
from tests.support.messages import task_message
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.support.worker import ROOT, Worker


def doctor(url: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Run it on the basic app; returns its exit status and its findings, by check."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CELERIAC_TEST_BROKER": url}
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", "doctor", "--json"]
    done = subprocess.run(
        [*command, *options], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    findings: dict[str, Any] = {}
    for finding in json.loads(done.stdout)["findings"]:
        findings.setdefault(finding["check"], []).append((finding["level"], finding["what"]))
    return done.returncode, findings


@pytest.fixture(scope="module")
def at(valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url()) as running:
        yield running


def test_a_platform_in_good_health_is_found_so(at: Station) -> None:
    status, findings = doctor(at.broker.url, "--strict")
    troubles = {check: found for check, found in findings.items() if found[0][0] != "ok"}
    # The tests' server shares the machine's memory with much else.
    assert troubles.keys() <= {"memory"}
    assert status == 0 or troubles
    assert findings["workers"] == [("ok", "1 worker answered")]
    assert findings["queues"] == [("ok", "all of 7 queues are consumed")]


def test_stock_neighbours_and_stranded_messages_are_found(at: Station) -> None:
    at.broker.client.lpush("celery", task_message())
    app = stock.create(at.broker.url)
    env = {"CELERIAC_TEST_BROKER": at.broker.url}
    with Worker("tests.apps.stock", "solo", 1, queues=["default"], env=env) as neighbour:
        status, findings = doctor(at.broker.url)
    close(app)
    at.broker.client.delete("celery")
    assert status == 2
    assert ("error", "1 message in queue 'celery', which is not in the table") in findings["queues"]
    assert findings["workers"][0] == (
        "warn",
        f"{neighbour.name} is a stock worker and consumes default",
    )


def test_a_platform_without_workers_is_an_error(broker: Broker) -> None:
    key = "celeriac:ledger:default"
    broker.client.hset(key, mapping={"accepted": 2, "unacked": 1})
    broker.client.hset("unacked", "w:1:1:1", f'[{task_message()},"","default"]')
    broker.client.hset("celeriac:origins", "w:1:1:1", "default")
    broker.client.zadd("celeriac:leases", {"w:1:1:1": 1})
    status, findings = doctor(broker.url, "--timeout", "0.5")
    assert status == 2
    assert findings["workers"] == [("error", "no worker of the engine answers")]
    assert findings["unacked"] == [("error", "1 message held under leases that ran out")]
    assert "1 message left uncounted" in findings["ledger"][0][1]


def test_a_killed_worker_is_an_error_while_its_leases_run(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 3, queues=["slow"]) as at:
        for n in range(3):  # two run, which is the prefetch, and one waits
            at.send("held", f"{n}", "never", ignore_result=True)
        for _ in range(2):
            at.traces.next_start()
        eventually(lambda: at.broker.unacked() == 2 and at.broker.names("celeriac:workers"))
        at.worker.kill()
        status, findings = doctor(at.broker.url)
        assert status == 2
        assert findings["workers"] == [
            ("warn", f"{at.worker.name} holds 2 messages and does not answer"),
            ("error", "no worker of the engine answers"),
        ]
        assert findings["unacked"] == [
            ("error", "2 messages in the hands of workers that do not answer")
        ]
        what = "1 message in queue 'slow', which no worker that answers consumes"
        assert findings["queues"] == [("error", what)]


def test_a_dead_letter_alone_is_no_warning(at: Station) -> None:
    at.send("needs", "nothing", ignore_result=True)
    eventually(lambda: len(at.broker.dead("default")) == 1)
    _, findings = doctor(at.broker.url, "--strict")
    assert findings["dead letters"] == [("ok", "1 dead letter of queue 'default'")]


def test_a_broker_that_is_away_has_a_status_of_its_own() -> None:
    status, findings = doctor("redis://127.0.0.1:1/0")
    assert status == 69
    ((level, what),) = findings["server"]
    assert level == "error"
    assert "does not answer" in what
