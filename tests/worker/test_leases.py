"""Who holds a message: as long as its worker lives and renews, that worker, and then another."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from routing import TooManyDeliveries
from tests.apps.basic import TABLE
from tests.support.messages import ids_of
from tests.support.servers import Server, valkey_binary
from tests.support.station import Station, station
from tests.support.users import User
from tests.support.wait import elapse, eventually, throughout
from tests.worker.conftest import POOLS

LEASE_SECONDS = 3.0

QUEUES: dict[str, Any] = {
    **TABLE["queues"],
    "poison": {"max_deliveries": 2},
    "aging": {"max_age": 2.0, "prefetch": 4},
}
SETTINGS = {"table": {**TABLE, "queues": QUEUES, "lease_seconds": LEASE_SECONDS}}

#: What a message of a worker that has gone may wait for on top of its lease.
TAKE_OVER_SECONDS = LEASE_SECONDS + 5


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A broker that a test may stop, while the tasks' traces are on another server."""
    server = Server(valkey_binary(), tmp_path_factory.mktemp("b"))
    server.start()
    yield server
    server.close()


def hold(at: Station, count: int, *, rate: str = "1/h", **options: Any) -> list[str]:
    """Let one task run, while others wait in the same worker for their rate; returns all names."""
    at.limit_rate("held", rate)
    prefix = secrets.token_hex(2)
    names = [f"{prefix}-{n}" for n in range(count)]
    for name in names:
        at.send("held", name, prefix, task_id=name, ignore_result=True, **options)
    at.traces.next_start()
    eventually(lambda: at.broker.unacked() == count)
    return names


def starts(at: Station, count: int) -> list[str]:
    return [at.traces.next_start(seconds=20) for _ in range(count)]


def reclaimed(at: Station) -> int:
    return sum(at.broker.ledger(queue).get("reclaimed", 0) for queue in QUEUES)


def test_a_task_that_blocks_for_five_leases_runs_once_in_every_pool(valkey: Server) -> None:
    queues = dict(zip(POOLS, ["default", "low", "high", "fast"], strict=True))
    url = valkey.fresh_url()
    with ExitStack() as stack:
        stations = [
            stack.enter_context(station(url, pool, 1, queues=[queue], settings=SETTINGS))
            for pool, queue in queues.items()
        ]
        at = stations[0]
        for pool, queue in queues.items():
            at.send("blocks", pool, 5 * LEASE_SECONDS, queue=queue, ignore_result=True)
        at.wait_until_ran(len(POOLS), timeout=60)
        eventually(at.broker.holds_nothing)
        assert at.traces.counts("started") == dict.fromkeys(POOLS, 1)
        assert reclaimed(at) == 0
        assert not at.broker.names("celeriac:started")
        assert not at.broker.charges()


def test_a_sibling_takes_over_from_a_killed_worker_in_order(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 2, settings=SETTINGS) as at:
        names = hold(at, 6, queue="bulk")
        with at.worker.twin(concurrency=1) as sibling:
            at.worker.kill()
            killed = time.monotonic()
            assert starts(at, 1) == names[:1]
            assert time.monotonic() - killed < TAKE_OVER_SECONDS
            charge = (1, f"the lease of {at.worker.name} ran out")
            assert at.broker.charges() == {names[0]: charge}
            at.traces.open(names[0].split("-")[0], times=len(names))
            assert starts(at, 5) == names[1:], "the order of the queue was lost"
            at.wait_until_ran(len(names))
            at.wait_until_settled()
            assert at.broker.ledger("bulk")["reclaimed"] == len(names)
            assert "stopped renewing their leases: 6" in sibling.log


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_a_broker_that_is_away_for_three_leases_repeats_nothing(
    elsewhere: Server, valkey: Server, how: str
) -> None:
    url, store = elsewhere.fresh_url(), valkey.fresh_url()
    with station(url, "threads", 2, store=store, view=url, settings=SETTINGS) as at:
        # The rate lets the second one start while the broker is away.
        names = hold(at, 4, rate=f"{60 / (3 * LEASE_SECONDS)}/m", queue="bulk")
        with at.worker.twin():
            if how == "paused":
                os.kill(elsewhere.pid, signal.SIGSTOP)
                at.traces.open(names[0].split("-")[0])
                at.wait_until_ran(1)
                # The slots are free, but nobody knows whose the next message is.
                throughout(lambda: at.traces.total("started") == 1, 4 * LEASE_SECONDS)
                os.kill(elsewhere.pid, signal.SIGCONT)
            else:
                elsewhere.stop(signal.SIGKILL)
                elapse(3 * LEASE_SECONDS)
                elsewhere.start()
            elapse(LEASE_SECONDS)
            at.limit_rate("held", "0")
            at.traces.open(names[0].split("-")[0], times=len(names))
            at.wait_until_ran(len(names), timeout=40)
            at.wait_until_settled(timeout=20)
            assert at.traces.counts() == dict.fromkeys(names, 1)
            assert at.broker.ledger("bulk")["done"] == len(names)
            assert reclaimed(at) == 0


def test_a_worker_that_was_stopped_past_its_lease_starts_nothing_that_others_have(
    valkey: Server,
) -> None:
    with station(valkey.fresh_url(), "threads", 2, settings=SETTINGS) as at:
        names = hold(at, 4, queue="bulk")
        with at.worker.twin():
            at.worker.send(signal.SIGSTOP)
            stopped = psutil.Process(at.worker.pid)
            eventually(lambda: stopped.status() == psutil.STATUS_STOPPED)
            # The sibling begins with what the stopped one was running.
            at.traces.open(names[0].split("-")[0], times=2 * len(names))
            at.wait_until_ran(len(names))
            assert at.traces.counts() == dict.fromkeys(names, 1)
            at.worker.send(signal.SIGCONT)
            at.worker.wait_log("are other workers' now")
            assert at.send("add", 1, 1).get(timeout=10) == 2
            eventually(lambda: at.traces.counts() == {**dict.fromkeys(names, 1), names[0]: 2})
            at.wait_until_settled()
            ledger = at.broker.ledger("bulk")
            assert (ledger["done"], ledger["unacked"], ledger["reclaimed"]) == (4, 0, 4)


def test_a_message_that_keeps_killing_its_process_becomes_a_dead_letter(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 1, settings=SETTINGS) as at:
        good = at.app.tasks["basic.mark"].si("errback")
        result = at.send("dies", "poison", queue="poison", link_error=good)
        with pytest.raises(TooManyDeliveries, match="killed its worker 2 times"):
            result.get(timeout=30)
        assert at.traces.counts("started")["poison"] == 2
        eventually(lambda: at.traces.counts().get("errback") == 1)
        letter = eventually(lambda: at.broker.evidence("poison"))[0]
        assert letter["reason"] == "poison"
        assert letter["exception"] == "routing.errors.TooManyDeliveries"
        assert "SIGKILL" in letter["message"]
        at.wait_until_settled()
        assert at.broker.ledger("poison")["dead"] == 1
        assert not at.broker.charges()


def test_a_message_that_was_delivered_before_is_known_to_run_before_it_can_kill(
    valkey: Server,
) -> None:
    with station(valkey.fresh_url(), "solo", 1, settings=SETTINGS) as at:
        at.stop_consuming("poison")
        at.send("dies", "at once", queue="poison")
        text = at.broker.client.rpop("poison")
        at.broker.client.lpush("poison", text[:-2] + b',"redelivered":true}}')
        at.app.control.add_consumer("poison", destination=[at.worker.name])
        at.worker.wait()
        assert at.broker.client.hvals("celeriac:started") == [b"1"]  # it ran alone


def send_poison(at: Station) -> None:
    """Send a message that has killed its worker as often as it may."""
    at.stop_consuming("default")
    at.send("mark", "poison", task_id="an-id")
    text = at.broker.client.rpop("default")
    noted = b',"redelivered":true,"deliveries":5,"charged":"it died"}}'
    at.broker.client.lpush("default", text[:-2] + noted)
    at.app.control.add_consumer("default", destination=[at.worker.name])


def test_a_message_that_is_stopped_does_not_come_back_when_its_result_can_never_be_stored(
    valkey: Server,
) -> None:
    results = User(valkey, "+@all", "-set", "-setex", "-multi", "-evalsha")
    settings = {**SETTINGS, "result_backend": results.url}
    with station(valkey.fresh_url(), "threads", 1, settings=settings) as at:
        send_poison(at)
        eventually(lambda: at.broker.ledger("default").get("dead") == 1)
        at.wait_until_settled()
        assert "given_back" not in at.broker.ledger("default")
        assert at.traces.total("started") == 0


def test_a_message_that_is_stopped_waits_for_a_result_backend_that_is_away(
    valkey: Server, tmp_path: Path
) -> None:
    results = Server(valkey_binary(), tmp_path)
    settings = {**SETTINGS, "result_backend": results.database_url(1)}
    with station(valkey.fresh_url(), "threads", 1, settings=settings) as at:
        send_poison(at)
        at.worker.wait_log("waiting for the result backend")
        assert not at.broker.dead("default")
        results.start()
        with closing(results):
            eventually(lambda: at.broker.ledger("default").get("dead") == 1)
            at.wait_until_settled()
            stored = results.client(1).get("celery-task-meta-an-id")
            assert b"TooManyDeliveries" in stored
        assert "given_back" not in at.broker.ledger("default")
        assert at.traces.total("started") == 0


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
def test_what_succeeded_before_its_worker_was_killed_is_not_run_again(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 1, settings=SETTINGS) as at:
        (name,) = hold(at, 1, queue="bulk")
        at.app.backend.store_result(name, "kept", "SUCCESS")
        with at.worker.twin():
            at.worker.kill()
            eventually(lambda: at.broker.ledger("bulk").get("done") == 1, TAKE_OVER_SECONDS + 5)
        assert at.traces.counts("started") == {name: 1}
        assert at.app.AsyncResult(name).get(timeout=5) == "kept"


def test_a_message_that_has_become_too_old_is_ended_and_never_run(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 1, settings=SETTINGS) as at:
        first = at.send("held", "first", "gate", queue="aging")
        at.traces.next_start()
        late = at.send("mark", "late", queue="aging")
        elapse(QUEUES["aging"]["max_age"])
        at.traces.open("gate")
        assert first.get(timeout=10) == "first"
        with pytest.raises(Exception, match="expired"):
            late.get(timeout=10)
        assert "late" not in at.traces.counts("started")
        at.wait_until_settled()
        assert at.broker.ledger("aging")["expired"] == 1


@pytest.mark.parametrize(
    ("pool", "patience_seconds"), [*((pool, 0.0) for pool in POOLS), ("prefork", 0.5)]
)
def test_a_cold_shutdown_gives_everything_back(
    valkey: Server, pool: str, patience_seconds: float
) -> None:
    settings = {**SETTINGS, "worker_soft_shutdown_timeout": patience_seconds}
    with station(valkey.fresh_url(), pool, 2, settings=settings) as at:
        # The solo pool takes in the next message only when it has ended the one before.
        names = hold(at, 1 if pool == "solo" else 3, queue="bulk")
        at.worker.send(signal.SIGQUIT)
        if pool in ("threads", "solo"):  # nothing can end a thread
            at.traces.open(names[0].split("-")[0])
        at.worker.wait()
        assert at.broker.holds_nothing()
        payloads = at.broker.payloads("bulk")
        found = [*at.traces.counts(), *ids_of(payloads)]
        # Under gevent what was killed can go back before what waits behind it, which overtakes it.
        assert (sorted(found) if pool == "gevent" else found) == names
        begun = [
            i for text, i in zip(payloads, ids_of(payloads), strict=True) if "redelivered" in text
        ]
        assert begun == (names[:1] if payloads and names[0] in ids_of(payloads) else [])
        assert not at.broker.charges(), "ending early is nobody's fault"
