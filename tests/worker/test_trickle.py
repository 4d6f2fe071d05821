"""Items that come one by one while every slot is busy: they make full batches afterwards."""

from __future__ import annotations

import secrets
import signal
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import trickle
from tests.apps.basic import Traces, close
from tests.apps.batches import create
from tests.apps.defaults import create as create_defaults
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually, throughout
from tests.support.worker import Worker

#: Of the tasks that are sent here.
MAX_SIZE, MAX_WAIT = 50, 0.2


class Busy:
    """A worker with two slots, which a test keeps busy."""

    def __init__(self, url: str, pool: str) -> None:
        self.app = create(url)
        self.traces = Traces(url)
        self.broker = Broker(url)
        self.worker = Worker("tests.apps.batches", pool, env={"CELERIAC_TEST_BROKER": url})

    def __enter__(self) -> Busy:
        self.worker.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.worker.__exit__(*exc_info)
        close(self.app)
        self.traces.client.close()
        self.broker.client.close()

    def block(self) -> list[str]:
        """Occupy both slots; returns the gates that free them."""
        self.traces.client.delete("sizes")
        gates = [secrets.token_hex(4) for _ in range(2)]
        for gate in gates:
            self.send(gate, 1)
        assert self.sizes(2) == [1, 1]
        self.traces.client.delete("sizes")
        return gates

    def send(self, gate: str, count: int) -> list[str]:
        """Send items that run until the gate opens; returns their names."""
        task = self.app.tasks["batches.held"]
        names = [secrets.token_hex(4) for _ in range(count)]
        task.apply_many([((name, gate), {}) for name in names], ignore_result=True)
        return names

    def trickle(self, gate: str, lots: list[int]) -> None:
        """Send lots, each after the one before has waited for longer than max_wait."""
        for count in lots:
            self.send(gate, count)
            throughout(lambda: not self.traces.client.exists("sizes"), 1.5 * MAX_WAIT)

    def sizes(self, count: int) -> list[int]:
        """Return the sizes of the batches that started, in order, once there are so many."""
        eventually(lambda: self.traces.client.llen("sizes") >= count)
        return [int(size) for size in self.traces.client.lrange("sizes", 0, -1)]

    def settle(self) -> None:
        eventually(lambda: self.broker.has_ended("default"))


@pytest.fixture(scope="module", params=["prefork", "threads", "gevent"])
def busy(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Busy]:
    with Busy(valkey.fresh_url(), request.param) as busy:
        yield busy


@pytest.mark.parametrize("time", ["first", "second", "third"])
def test_what_arrives_while_every_slot_is_busy_makes_one_batch(busy: Busy, time: str) -> None:
    gates = busy.block()
    gate = secrets.token_hex(4)
    busy.trickle(gate, [3, 4, 5])
    busy.traces.open(gates[0])
    assert busy.sizes(1) == [12], time
    busy.traces.open(gate)
    busy.traces.open(gates[1])
    busy.settle()


def test_a_batch_that_is_full_is_followed_by_the_next_in_order(busy: Busy) -> None:
    gates = busy.block()
    gate = secrets.token_hex(4)
    busy.trickle(gate, [30, 30, 10])
    busy.traces.open(gates[0])
    assert busy.sizes(1) == [MAX_SIZE]
    busy.traces.open(gate, times=2)
    assert busy.sizes(2) == [MAX_SIZE, 20]
    busy.traces.open(gates[1])
    busy.settle()


def test_what_waits_for_a_slot_stays_in_its_queue_when_the_worker_stops(valkey: Server) -> None:
    with Busy(valkey.fresh_url(), "threads") as busy:
        gates = busy.block()
        gate = secrets.token_hex(4)
        busy.trickle(gate, [3, 4])
        busy.worker.send(signal.SIGTERM)
        for name in gates:
            busy.traces.open(name)
        assert busy.worker.wait() == 0
        assert busy.broker.length("default") == 7
        assert busy.broker.holds_nothing()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_defaults_of_batch_tasks_and_queues_fit_each_other(valkey: Server, pool: str) -> None:
    url = valkey.fresh_url()
    app, traces = create_defaults(url), Traces(url)
    worker = Worker("tests.apps.defaults", pool, env={"CELERIAC_TEST_BROKER": url})
    names = [f"item-{number}" for number in range(400)]
    for task in ("routed", "addressed"):
        app.tasks[task].delay_many([f"{task}-{name}" for name in names])
    with worker:
        needed = 100 * (worker.slots + 1)
        assert f"prefetch by queue: small 4, own {needed}, routed {needed}" in worker.log
        assert "prefetch is" not in worker.log, "nobody needs to be warned"
        eventually(lambda: traces.total() == 2 * len(names), 30)
    sizes = [int(size) for size in traces.client.lrange("sizes", 0, -1)]
    assert max(sizes) == 100
    assert sum(sizes) == 2 * len(names)
    traces.client.close()
    close(app)


def test_the_scenario_reads_calls_that_are_still_being_written() -> None:
    one = trickle.CALL.pack(5, 2, 2) + struct.pack("=2q", 1, 3)
    other = trickle.CALL.pack(9, 2, 1) + struct.pack("=q", 4)
    calls = list(trickle.read_calls(one + other[:-1]))
    assert calls == [trickle.Call(began=5, took=2, waits=(1, 3))]
    assert [call.began for call in trickle.read_calls(one + other)] == [5, 9]
    figures: dict[str, Any] = trickle._burst(list(trickle.read_calls(one + other)), fresh=1.0)
    assert (figures["items"], figures["mean_batch"]) == (3, 1.5)
