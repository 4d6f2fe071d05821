"""What is set for a queue at run time: every worker goes by it within a second."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from routing import QueueDraining, QueueFull
from routing.redis.consumers import read as consumers_of
from routing.redis.keys import Keys
from routing.settings import reset_queue, set_queue
from tests.apps import batches
from tests.apps.basic import TABLE, Traces, close
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually, throughout
from tests.support.worker import Worker

POOLS = [("prefork", 2), ("threads", 2), ("gevent", 2), ("solo", 1)]


@pytest.fixture
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Station]:
    pool, concurrency = request.param
    with station(valkey.fresh_url(), pool, concurrency) as running:
        yield running


def starts(at: Station) -> int:
    return at.traces.total("started")


def given_back(broker: Broker, queue: str, count: int) -> bool:
    """Whether so many messages wait, and none is held: a fetch may have been on its way."""
    return broker.unacked(queue) == 0 and broker.length(queue) == count


def prefetch(at: Station, queue: str) -> int:
    """Return what the worker says that it may hold of a queue."""

    def answer() -> list[dict[str, Any]]:
        options: Any = {"destination": [at.worker.name], "reply": True, "timeout": 5, "limit": 1}
        return list(at.app.control.broadcast("queue_credits", **options))

    (told,) = eventually(answer, 20)
    return int(told[at.worker.name][queue]["prefetch"])


def followed(at: Station, text: str) -> float:
    """Return the seconds until the worker has said that it goes by a setting."""
    began = time.monotonic()
    eventually(lambda: text in at.worker.log, 10, poll_seconds=0.01)
    return time.monotonic() - began


@pytest.mark.parametrize("at", POOLS, indirect=True, ids=str)
def test_a_busy_worker_pauses_a_queue_and_goes_on_with_it(at: Station) -> None:
    names = at.send_many("mark", 150, 0.05, queue="bulk")
    eventually(lambda: starts(at) >= 5)
    set_queue(at.app, "bulk", paused=True)
    assert followed(at, "queue 'bulk': paused is now true") < 1
    eventually(at.broker.holds_nothing)
    so_far = starts(at)
    assert so_far < 150
    names += at.send_many("mark", 5, queue="bulk")  # it accepts
    assert at.broker.length("bulk") == 155 - so_far
    throughout(lambda: starts(at) == so_far, 1.0)
    at.send_many("mark", 20, queue="fast")  # the others go on
    eventually(lambda: starts(at) == so_far + 20)

    reset_queue(at.app, "bulk")
    began = time.monotonic()
    eventually(lambda: starts(at) > so_far + 20, 10, poll_seconds=0.01)
    assert time.monotonic() - began < 1
    at.wait_until_ran(175, timeout=60)
    at.wait_until_settled()
    assert at.traces.counts().items() >= dict.fromkeys(names, 1).items()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_worker_without_any_queue_that_is_not_paused_hears_of_the_end(
    valkey: Server, pool: str
) -> None:
    with station(valkey.fresh_url(), pool, 1, queues=["fast"]) as at:
        set_queue(at.app, "fast", paused=True)
        assert followed(at, "queue 'fast': paused is now true") < 1
        at.send_many("mark", 3, queue="fast")
        throughout(lambda: starts(at) == 0, 2.5)
        reset_queue(at.app, "fast", "paused")
        began = time.monotonic()
        eventually(lambda: starts(at) > 0, 10, poll_seconds=0.01)
        assert time.monotonic() - began < 1
        at.wait_until_ran(3)


@pytest.mark.parametrize("at", POOLS, indirect=True, ids=str)
def test_an_idle_worker_hears_of_a_pause_and_of_its_end(at: Station) -> None:
    set_queue(at.app, "fast", paused=True)
    assert followed(at, "queue 'fast': paused is now true") < 1
    at.send_many("mark", 3, queue="fast")
    throughout(lambda: starts(at) == 0, 1.5)
    set_queue(at.app, "fast", paused=False)
    began = time.monotonic()
    eventually(lambda: starts(at) > 0, 10, poll_seconds=0.01)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("at", [("prefork", 2), ("solo", 1)], indirect=True, ids=str)
def test_a_setting_survives_a_restart_of_the_worker(at: Station) -> None:
    set_queue(at.app, "fast", paused=True)
    set_queue(at.app, "slow", prefetch=5)
    assert at.worker.terminate() == 0
    at.send_many("mark", 3, queue="fast")
    at.worker.start()
    assert prefetch(at, "slow") == 5
    assert "queue 'fast': paused is set to true" in at.worker.log
    assert "queue 'slow': prefetch is set to 5" in at.worker.log
    at.send_many("mark", 10, queue="slow")
    at.wait_until_ran(10)
    throughout(lambda: at.broker.length("fast") == 3, 1.5)
    reset_queue(at.app, "fast", "paused")
    at.wait_until_ran(13)


@pytest.mark.parametrize("at", [("prefork", 2), ("threads", 2)], indirect=True, ids=str)
def test_a_stored_prefetch_wins_over_remote_control_before_it(at: Station) -> None:
    def tell(count: int) -> None:
        arguments = {"queue": "slow", "count": count}
        options: Any = {"arguments": arguments, "reply": True, "timeout": 5, "limit": 1}
        assert at.app.control.broadcast("queue_prefetch", **options)

    set_queue(at.app, "slow", prefetch=6)
    eventually(lambda: prefetch(at, "slow") == 6)
    tell(8)
    assert prefetch(at, "slow") == 8
    set_queue(at.app, "fast", prefetch=9)
    at.worker.wait_log("queue 'fast': prefetch is now 9")
    assert prefetch(at, "slow") == 8
    set_queue(at.app, "slow", prefetch=6)
    eventually(lambda: prefetch(at, "slow") == 6)
    tell(8)
    reset_queue(at.app, "slow")
    eventually(lambda: prefetch(at, "slow") == 2)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_without_credit_hears_of_a_larger_prefetch(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 4) as at:
        at.send_many("held", 10, "gate", queue="slow")
        eventually(lambda: starts(at) == 2)
        throughout(lambda: starts(at) == 2, 1.0)
        set_queue(at.app, "slow", prefetch=4)
        began = time.monotonic()
        eventually(lambda: starts(at) == 4, poll_seconds=0.01)
        assert time.monotonic() - began < 1
        at.traces.open("gate", times=10)
        at.wait_until_ran(10)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_batch_that_waits_is_given_back_when_its_queue_is_paused(
    valkey: Server, pool: str
) -> None:
    url = valkey.fresh_url()
    app, traces = batches.create(url), Traces(url)
    env = {"CELERIAC_TEST_BROKER": url}
    load = app.tasks["batches.load"]
    with Broker(url) as broker, Worker("tests.apps.batches", pool, 1, env=env) as worker:
        eventually(lambda: broker.client.exists("celeriac:consumers:default"))
        app.tasks["batches.held"].apply_async(("blocker", "gate"), queue="other")
        eventually(lambda: "blocker" in traces.counts("started"))
        for number in range(30):
            load.delay({"number": number})
        set_queue(app, "default", paused=True)
        eventually(lambda: given_back(broker, "default", 30))
        traces.open("gate")
        eventually(lambda: "blocker" in traces.counts())
        worker.wait_log("queue 'default': paused is now true")
        throughout(lambda: len(traces.counts()) == 1, 0.5)
        reset_queue(app, "default")
        eventually(lambda: len(traces.counts()) == 31, 10)
        eventually(broker.holds_nothing)
    traces.client.close()
    close(app)


@pytest.mark.parametrize("at", POOLS, indirect=True, ids=str)
def test_what_a_rate_limit_keeps_waiting_is_given_back_too(at: Station) -> None:
    at.send_many("limited", 20, queue="bulk")
    eventually(lambda: at.traces.total() == 1 and at.broker.unacked("bulk") > 0)
    set_queue(at.app, "bulk", paused=True)
    eventually(lambda: given_back(at.broker, "bulk", 19))
    throughout(lambda: given_back(at.broker, "bulk", 19), 0.5)


def test_work_that_waits_for_a_slot_is_given_back_when_its_queue_is_paused(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 1) as at:
        at.send_many("held", 1, "gate", queue="slow")  # takes the slot
        at.traces.next_start()
        at.send_many("mark", 30, queue="bulk")
        set_queue(at.app, "bulk", paused=True)
        eventually(lambda: given_back(at.broker, "bulk", 30))
        at.traces.open("gate")
        at.wait_until_ran(1)
        reset_queue(at.app, "bulk")
        at.wait_until_ran(31)


def test_weights_and_limits_change_while_a_worker_is_busy(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 4) as at:
        at.send_many("held", 10, "gate", queue="bulk")
        eventually(lambda: starts(at) == 4)
        set_queue(at.app, "bulk", limit=1)
        followed(at, "queue 'bulk': limit is now 1")
        at.traces.open("gate", times=4)
        eventually(lambda: starts(at) == 5)
        throughout(lambda: starts(at) == 5, 0.5)
        reset_queue(at.app, "bulk", "limit")
        eventually(lambda: starts(at) == 8)
        at.traces.open("gate", times=6)
        at.wait_until_ran(10)


@pytest.mark.parametrize("at", POOLS, indirect=True, ids=str)
def test_a_worker_that_connects_again_is_one_consumer_and_goes_by_what_was_set(at: Station) -> None:
    eventually(lambda: at.broker.client.zcard("celeriac:consumers:fast") == 1)
    os.kill(at.worker.pid, signal.SIGSTOP)  # so that it connects again after that was set
    at.broker.client.client_kill_filter(_type="normal", skipme=True)
    set_queue(at.app, "fast", paused=True)
    at.send_many("mark", 3, queue="fast")
    at.send_many("mark", 3, queue="low")
    os.kill(at.worker.pid, signal.SIGCONT)
    at.worker.wait_log("queue 'fast': paused is now true")
    at.wait_until_ran(3)
    throughout(lambda: starts(at) == 3, 1.0)
    reset_queue(at.app, "fast")
    at.wait_until_ran(6)
    eventually(lambda: at.broker.client.zcard("celeriac:consumers:fast") == 1)


def test_a_queue_that_is_paused_in_the_table_starts_when_it_is_set_so(valkey: Server) -> None:
    queues = {**TABLE["queues"], "fast": {"paused": True}}
    settings = {"table": {**TABLE, "queues": queues}}
    with station(valkey.fresh_url(), "threads", 2, settings=settings) as at:
        at.send_many("mark", 3, queue="fast")
        throughout(lambda: starts(at) == 0, 1.5)
        set_queue(at.app, "fast", paused=False)
        at.wait_until_ran(3)


def test_a_draining_queue_is_worked_off_with_its_retries(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 2) as at:
        at.send_many("held", 4, "gate", queue="fast")
        at.send("retried", "again", 2, queue="fast")
        set_queue(at.app, "fast", drain=True)
        with pytest.raises(QueueDraining):
            at.send("mark", "new", queue="fast")
        at.traces.open("gate", times=4)
        eventually(lambda: at.traces.counts().get("again") == 3)
        eventually(lambda: at.broker.length("fast") == 0)
        at.wait_until_settled()


def test_a_server_that_has_forgotten_the_settings_has_the_table_hold_again(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 2) as at:
        set_queue(at.app, "fast", paused=True)
        at.worker.wait_log("queue 'fast': paused is now true")
        at.broker.client.delete("celeriac:settings", "celeriac:settings:version")
        at.worker.wait_log("queue 'fast': paused is now false")


def test_a_worker_goes_on_with_the_table_where_it_cannot_use_a_setting(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 2) as at:
        client = at.broker.client
        text = '{"shape": {"value": 3, "by": "new", "at_ms": 1, "before": null}}'
        client.hset("celeriac:settings", "fast", text)
        client.incr("celeriac:settings:version")
        set_queue(at.app, "slow", weight=3)
        at.worker.wait_log("the settings of queue 'fast' cannot be used here, so the table holds")
        set_queue(at.app, "slow", weight=4)
        at.worker.wait_log("weight is now 4")
        assert at.worker.log.count("the settings of queue 'fast' cannot be used") == 1
        at.send_many("mark", 3, queue="fast")
        at.wait_until_ran(3)


@pytest.mark.parametrize(
    ("pool", "slots"), [("prefork", 3), ("threads", 3), ("gevent", 3), ("solo", 1)]
)
def test_a_worker_says_what_it_consumes_and_takes_that_back_when_it_stops(
    valkey: Server, pool: str, slots: int
) -> None:
    with station(valkey.fresh_url(), pool, slots, queues=["fast", "slow"]) as at:
        client, keys, queues = at.broker.client, Keys(), list(TABLE["queues"])
        (one,) = eventually(lambda: consumers_of(client, keys, queues))
        assert one.queues == {"fast", "slow"}
        assert (one.consumer.slots, one.consumer.hostname) == (slots, at.worker.name)
        assert at.worker.terminate() == 0
        assert consumers_of(client, keys, queues) == []


def test_an_idle_worker_spends_at_most_one_call_a_second_more(valkey: Server) -> None:
    with station(valkey.fresh_url(), "prefork", 2) as at:
        eventually(at.broker.holds_nothing)
        # The exchange of its look, the wait for a bell, and one more.
        assert at.broker.calls_per_second(seconds=6) < 8


def test_a_killed_worker_is_missed_within_half_a_minute(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 1, queues=["fast"]) as at:
        twin = at.worker.twin(queues=["low"])
        with twin:
            eventually(lambda: at.broker.client.zcard("celeriac:consumers:low") == 1)
            twin.kill()
            began = time.monotonic()
            at.send_many("mark", 3, queue="low")
            at.worker.wait_log("queue 'low': 3 messages wait and no live worker consumes it", 40)
            assert time.monotonic() - began < 30


def filled(at: Station) -> QueueFull:
    """Send until the queue is full; returns how it says so."""
    while True:
        try:
            at.send("mark", "x", 0.2, queue="small", ignore_result=True)
        except QueueFull as error:
            return error


def test_a_full_queue_knows_the_pace_of_its_workers(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 1) as at:
        filled(at)
        eventually(lambda: filled(at) and at.traces.total() >= 10, 20, poll_seconds=0.1)
        error = filled(at)
        assert error.is_consumed
        assert 0.15 < error.retry_after < 0.6  # a task takes 0.2 s
        at.worker.kill()
        at.broker.client.delete("celeriac:consumers:small")  # as 15 s later
        at.broker.client.delete("celeriac:pace:small")
        error = filled(at)
        assert (error.is_consumed, error.retry_after) == (False, 60)


def test_a_queue_that_nobody_consumes_is_told_by_the_workers_that_live(valkey: Server) -> None:
    with station(valkey.fresh_url(), "threads", 1, queues=["fast"]) as at:
        at.send_many("mark", 3, queue="low")
        at.worker.wait_log("queue 'low': 3 messages wait and no live worker consumes it", 30)
        with at.worker.twin(queues=["low"]):
            at.wait_until_ran(3)
            at.worker.wait_log("queue 'low' has a consumer again", 30)
        assert at.worker.log.count("no live worker consumes it") == 1
