"""Whatever is sent, the worker goes on, the next task runs, and every message has one ending."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from routing.redis import ledger as books
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.ledger import QueueLedger
from routing.topology.model import Topology
from tests.apps import batches
from tests.apps.basic import TABLE, close
from tests.support.broker import Broker
from tests.support.hostile import KINDS, QUEUE, valid
from tests.support.results import value
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually
from tests.support.worker import Worker

COMMANDS_OF_TABLE = Commands(keys=Keys(), topology=Topology.load(TABLE))


@pytest.fixture(scope="module", params=["prefork", "gevent", "solo"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), request.param) as running:
        yield running


def push(at: Station, text: str | bytes) -> None:
    """Send a text as it is, counted as any accepted message."""
    assert COMMANDS_OF_TABLE.push(at.broker.client, QUEUE, [text]).accepted == 1


def ledger(at: Station) -> QueueLedger:
    """Return where the messages are."""
    return books.read(at.broker.client, COMMANDS_OF_TABLE, [QUEUE], recount=True)[QUEUE]


def is_empty(at: Station) -> bool:
    """Return whether every message has ended."""
    now = ledger(at)
    return now.waiting == now.delayed == now.unacked == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_stops_a_worker_or_stays_with_it(at: Station, kind: str) -> None:
    pid, connections = at.worker.pid, at.worker.log.count("] Connected to")
    good = {}
    for name, text in KINDS[kind]():
        push(at, text)
        good[name] = at.send("add", 1, 2)
    for name, result in good.items():
        eventually(lambda: result.ready() or not at.worker.running, 30, message=name)  # noqa: B023
        assert at.worker.running, f"ended near: {name}"
        assert result.get(timeout=1) == 3
    eventually(lambda: is_empty(at), message=lambda: f"{ledger(at)}\n{at.worker.log[-9000:]}")
    assert (ledger(at).difference, ledger(at).misheld) == (0, 0)
    assert at.worker.pid == pid
    assert at.worker.log.count("] Connected to") == connections, "taken for a lost connection"


def test_what_cannot_be_a_task_is_a_dead_letter_with_its_reason(at: Station) -> None:
    for text in (
        valid(timelimit=["x", 1]),
        valid("basic.nowhere", id=[1]),
        valid() | {"body": "?"},
    ):
        before = at.broker.length(f"{QUEUE}.dead")
        push(at, json.dumps(text))
        eventually(lambda: at.broker.length(f"{QUEUE}.dead") == before + 1)  # noqa: B023


def test_a_number_of_retries_that_is_none_stops_nobody(at: Station) -> None:
    for retries in ("\ud800", ["\ud800"], True, 1.5, 10**30):
        push(at, json.dumps(valid(retries=retries)))
        assert at.send("add", 1, 2).get(timeout=30) == 3
    eventually(lambda: is_empty(at))


def test_a_number_of_deliveries_that_is_none_stops_nobody(at: Station) -> None:
    ours = ({"deliveries": n, "charged": w} for n, w in (("9", 1), ([9], None), (-(10**30), {})))
    for noted in (*ours, {"deliveries": True}, {"deliveries": 99, "charged": "\ud800"}):
        at.broker.client.hincrby(f"celeriac:ledger:{QUEUE}", "accepted", 1)
        at.broker.client.lpush(QUEUE, json.dumps(valid() | {"celeriac": noted}))
        assert at.send("add", 1, 2).get(timeout=30) == 3
    eventually(lambda: is_empty(at))


def test_a_hostile_message_leaves_its_batch_alone(valkey: Server) -> None:
    url = valkey.fresh_url()
    app = batches.create(url)
    double = app.tasks["batches.double"]
    env = {"CELERIAC_TEST_BROKER": url}
    with Broker(url) as broker, Worker("tests.apps.batches", env=env) as worker:
        payloads = [text for kind in ("names", "headers", "sizes") for _, text in KINDS[kind]()]
        good = []
        for text in payloads:
            sent = text.replace("basic.add", "batches.double") if isinstance(text, str) else text
            COMMANDS_OF_TABLE.push(broker.client, QUEUE, [sent])
            good.append(double.delay(4))
        for result in good:
            assert value(result, timeout=30) == 8
        eventually(lambda: broker.unacked() + broker.length(QUEUE) == 0)
        assert worker.running
    close(app)
