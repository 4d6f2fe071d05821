"""What happens to the items of a batch while it waits, runs, and is cut short."""

from __future__ import annotations

import secrets
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from routing.redis.values import Mark
from tests.apps.basic import Traces, close
from tests.apps.batches import GATHERING_SECONDS, create
from tests.support.broker import Broker
from tests.support.rig import Rig
from tests.support.servers import Server, valkey_binary
from tests.support.wait import eventually, throughout
from tests.support.worker import Worker
from tests.worker.conftest import POOLS


class Scene:
    """A worker that a test starts and stops, and what it needs to look at it."""

    def __init__(self, url: str, pool: str = "prefork", *, store: str = "", **options: Any) -> None:
        self.app: Celery = create(url, store=store)
        self.traces = Traces(store or url)
        self.broker = Broker(url)
        env = {"CELERIAC_TEST_BROKER": url, "CELERIAC_TEST_STORE": store}
        env |= options.pop("env", {})
        self.worker = Worker("tests.apps.batches", pool, env=env, **options)

    def __enter__(self) -> Scene:
        self.worker.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.worker.__exit__(*exc_info)
        close(self.app)
        self.traces.client.close()
        self.broker.client.close()

    def task(self, name: str) -> Any:
        return self.app.tasks[f"batches.{name}"]

    def inspect(self, what: str) -> set[str]:
        """Return the ids that `celery inspect reserved` or `active` shows."""
        answer = getattr(self.app.control.inspect(timeout=5, limit=1), what)() or {}
        return {request["id"] for requests in answer.values() for request in requests}

    def stop_consuming(self, queue: str = "default") -> None:
        self.app.control.cancel_consumer(queue)
        eventually(lambda: not self.is_consuming(queue))

    def consume(self, queue: str = "default") -> None:
        self.app.control.add_consumer(queue)
        eventually(lambda: self.is_consuming(queue))

    def is_consuming(self, queue: str) -> bool:
        inspect = self.app.control.inspect(timeout=5, limit=1)
        (queues,) = eventually(inspect.active_queues, 20).values()
        return queue in [one["name"] for one in queues]

    def settled(self) -> bool:
        return self.broker.has_ended("default")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the tasks' own connections and the results, which nobody cuts."""
    server = Server(valkey_binary(), tmp_path_factory.mktemp("e"))
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared(valkey: Server) -> Iterator[Scene]:
    """A prefork worker with two slots for the tests that leave it as it was."""
    with Scene(valkey.fresh_url(), options=["-E"]) as scene:
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    eventually(shared.settled, 20)


def outcomes(results: list[AsyncResult]) -> list[Any]:
    return [result.get(timeout=20, propagate=False) for result in results]


def gather(
    scene: Scene, send: Callable[[], Sequence[AsyncResult]]
) -> tuple[Sequence[AsyncResult], list[str]]:
    """Let items wait in the worker for their batch while others have all its slots.

    A worker fetches what a free slot could start, of a queue that it knows for its batches. So
    these come in one delivery with the one that takes the last slot.

    Returns:
        What `send` returns, and the gates that the others wait for.
    """
    double = scene.task("double")
    for result in [double.delay(number) for number in range(100)]:
        result.get(timeout=10)
    gates = [secrets.token_hex(4) for _ in range(scene.worker.slots)]
    for gate in gates[1:]:
        block(scene, gate)
    scene.stop_consuming()
    scene.task("occupies").delay(gates[0])
    results = send()
    scene.consume()
    wait_until_blocked(scene, gates[0])
    eventually(lambda: {result.id for result in results} <= scene.inspect("reserved"))
    return results, gates


def block(scene: Scene, gate: str) -> None:
    """Keep a slot busy until the gate is opened."""
    scene.task("occupies").delay(gate)
    wait_until_blocked(scene, gate)


def wait_until_blocked(scene: Scene, gate: str) -> None:
    eventually(lambda: gate in scene.traces.counts("started"))


def unblock(scene: Scene, gates: Sequence[str]) -> None:
    for gate in gates:
        scene.traces.open(gate)


def test_waiting_items_are_reserved_and_running_ones_active(scene: Scene) -> None:
    double = scene.task("double")
    results, gates = gather(scene, lambda: [double.delay(number) for number in range(3)])
    waiting = {result.id for result in results}
    assert waiting <= scene.inspect("reserved")
    assert not waiting & scene.inspect("active")
    assert len(scene.inspect("active")) == 2
    unblock(scene, gates)
    eventually(lambda: not scene.inspect("active") and not scene.inspect("reserved"))


def test_a_batch_fills_from_a_queue_that_no_route_leads_to(scene: Scene) -> None:
    scene.stop_consuming("other")
    send = scene.task("double").apply_async
    results = [send((number,), queue="other") for number in range(12)]
    scene.traces.client.delete("sizes")
    scene.consume("other")
    for number, result in enumerate(results):
        assert result.get(timeout=GATHERING_SECONDS / 2) == 2 * number
    sizes = [int(size) for size in scene.traces.client.lrange("sizes", 0, -1)]
    assert max(sizes) > scene.worker.slots, "it took what was fetched for its slots one by one"


def test_a_revoked_item_is_ended_and_its_neighbours_run(scene: Scene) -> None:
    double = scene.task("double")
    results, gates = gather(scene, lambda: [double.delay(number) for number in range(3)])
    scene.app.control.revoke(results[1].id, reply=True, timeout=5, limit=1)
    unblock(scene, gates)
    found = outcomes(results)
    assert found[::2] == [0, 4]
    assert isinstance(found[1], TaskRevokedError)


def test_an_expired_item_is_ended_and_its_neighbours_run(scene: Scene) -> None:
    send = scene.task("double").apply_async
    soon = 3.0
    (early, late), gates = gather(scene, lambda: [send((1,), expires=soon), send((2,), expires=60)])
    throughout(lambda: not early.ready(), soon)
    unblock(scene, gates)
    assert late.get(timeout=10) == 4
    assert isinstance(outcomes([early])[0], TaskRevokedError)


def test_terminating_one_item_does_not_kill_its_neighbours(scene: Scene) -> None:
    gate = secrets.token_hex(4)
    held = scene.task("held")
    results, gates = gather(scene, lambda: [held.delay(f"{gate}-{n}", gate) for n in range(3)])
    unblock(scene, gates)
    eventually(lambda: {result.id for result in results} <= scene.inspect("active"))
    scene.app.control.revoke(
        results[0].id, terminate=True, signal="SIGKILL", reply=True, timeout=5, limit=1
    )
    scene.traces.open(gate)
    assert outcomes(results[1:]) == [None, None]
    assert [scene.traces.counts("started")[f"{gate}-{number}"] for number in range(3)] == [1, 1, 1]


def test_after_the_soft_limit_items_keep_the_outcomes_they_have(scene: Scene) -> None:
    slow = scene.task("slow")
    results, gates = gather(scene, lambda: [slow.delay(f"slow-{number}") for number in range(3)])
    unblock(scene, gates)
    found = outcomes(results)
    assert found[0] == "in time"
    assert all(isinstance(error, SoftTimeLimitExceeded) for error in found[1:])


def test_after_the_hard_limit_every_item_has_failed_once(scene: Scene) -> None:
    results = [scene.task("stuck").delay(f"stuck-{number}") for number in range(3)]
    assert all(isinstance(error, TimeLimitExceeded) for error in outcomes(results))
    counts = scene.traces.counts("started")
    assert [counts[f"stuck-{number}"] for number in range(3)] == [1, 1, 1]


def test_messages_with_time_limits_of_their_own_do_not_share_a_call(scene: Scene) -> None:
    send = scene.task("stuck").apply_async
    limits = {"patient": 3, "hasty": 1}
    (patient, hasty), gates = gather(
        scene, lambda: [send((name,), time_limit=limit) for name, limit in limits.items()]
    )
    unblock(scene, gates)
    assert "(1,)" in str(outcomes([hasty])[0].args)
    assert "(3,)" in str(outcomes([patient])[0].args)


def test_when_the_process_dies_its_items_run_again(scene: Scene) -> None:
    values = ["a", "bb", "ccc"]
    results = [scene.task("dies_once").delay(value) for value in values]
    assert outcomes(results) == [1, 2, 3]


def test_an_item_with_an_eta_waits_for_it(scene: Scene) -> None:
    result = scene.task("double").apply_async((4,), countdown=1)
    throughout(lambda: not result.ready(), 0.7)
    assert result.get(timeout=10) == 8


def test_messages_of_protocol_1_are_batched_as_well(scene: Scene) -> None:
    scene.app.conf.task_protocol = 1
    scene.app.amqp.__dict__.pop("create_task_message", None)
    try:
        results = [scene.task("double").delay(number) for number in range(3)]
    finally:
        scene.app.conf.task_protocol = 2
        scene.app.amqp.__dict__.pop("create_task_message", None)
    assert outcomes(results) == [0, 2, 4]


def test_every_item_has_its_events(scene: Scene) -> None:
    seen: dict[str, list[str]] = {}
    listening = Event()

    def note(event: dict[str, Any]) -> None:
        seen.setdefault(event["uuid"], []).append(event["type"])

    with scene.app.connection_for_read() as connection:
        receiver = scene.app.events.Receiver(
            connection, handlers={"*": lambda event: listening.set()}
        )
        receiver.handlers.update(
            {f"task-{kind}": note for kind in ("received", "started", "succeeded", "failed")}
        )
        capture = Thread(target=_capture, args=(receiver,), daemon=True)
        capture.start()
        assert listening.wait(10)
        rows = [{"number": 1}, {"number": 13}, {"number": "x"}]
        results = [scene.task("load").delay(row) for row in rows]
        outcomes(results)
        expected = ["task-succeeded", "task-failed", "task-failed"]
        eventually(
            lambda: [seen.get(result.id, [""])[-1] for result in results] == expected,
            message=lambda: str(seen),
        )
        receiver.should_stop = True
        capture.join(10)
    assert [seen[result.id][:2] for result in results] == [["task-received", "task-started"]] * 3


def _capture(receiver: Any) -> None:
    """Capture until told to stop; the workers are woken so that something comes at once."""
    while not receiver.should_stop:
        try:
            receiver.capture(limit=None, timeout=0.5, wakeup=True)
        except TimeoutError:
            continue


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_runs_no_item_twice_and_loses_none(valkey: Server, pool: str) -> None:
    with Scene(valkey.fresh_url(), pool) as scene:
        scene.task("pausing").delay_many(range(400))
        eventually(lambda: scene.traces.total() >= 40, 20)
        assert scene.worker.terminate() == 0
        counts = scene.traces.counts()
        assert set(counts.values()) == {1}
        assert scene.broker.unacked() == 0
        assert scene.broker.length("default") == 400 - len(counts)
        scene.worker.start()
        eventually(lambda: len(scene.traces.counts()) == 400, 30)
        eventually(scene.settled)
        assert set(scene.traces.counts().values()) == {1}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_lost_connection_repeats_nothing_that_runs(
    valkey: Server, elsewhere: Server, pool: str
) -> None:
    with Scene(valkey.fresh_url(), pool, store=elsewhere.fresh_url()) as scene:
        gate = secrets.token_hex(4)
        names = [f"item-{number}" for number in range(60)]
        results = [scene.task("held").delay(name, gate) for name in names]
        eventually(lambda: scene.traces.total("started") >= 2)
        valkey.kill_clients()
        eventually(lambda: scene.worker.log.count("] Connected to") > 1)
        scene.traces.open(gate, times=60)
        assert outcomes(results) == [None] * 60
        eventually(scene.settled, 20)
        assert scene.traces.counts() == Counter(names)
        assert scene.traces.counts("started") == Counter(names)


def test_a_rate_limit_counts_calls_and_batches_that_wait_for_it_grow(valkey: Server) -> None:
    with Scene(valkey.fresh_url()) as scene:
        limited = scene.task("limited")
        limited.delay("first")
        eventually(lambda: scene.traces.total() == 1)
        for number in range(6):
            limited.delay(f"limited-{number}")
        throughout(lambda: scene.traces.total() == 1, 0.5)
        ask = {"reply": True, "timeout": 10, "limit": 1}
        scene.app.control.rate_limit(limited.name, "1/h", **ask)
        throughout(lambda: scene.traces.total() == 1, 0.3)
        scene.app.control.rate_limit(limited.name, "2/s", **ask)
        eventually(lambda: scene.traces.total() == 7, 10)
        assert [int(size) for size in scene.traces.client.lrange("sizes", 0, -1)] == [1, 6]
        limited.delay("waits")
        scene.worker.terminate()
        assert scene.broker.length("default") + scene.traces.total() == 8
        assert scene.broker.unacked() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
@pytest.mark.parametrize("rate", ["0", "50/s"])
def test_items_that_wait_at_an_old_rate_go_on_at_the_new_one(
    valkey: Server, pool: str, rate: str
) -> None:
    with Scene(valkey.fresh_url(), pool) as scene:
        first, *others = names = [f"item-{n}" for n in range(12)]
        limited = scene.task("limited")
        limited.delay(first)
        eventually(lambda: scene.traces.total() == 1)
        limited.delay_many(others)
        throughout(lambda: scene.traces.total() == 1, 0.3)
        ask = {"reply": True, "timeout": 10, "limit": 1}
        scene.app.control.rate_limit(limited.name, rate, **ask)
        eventually(lambda: scene.traces.total() == 12, 10)
        eventually(scene.settled)
        assert scene.traces.counts() == dict.fromkeys(names, 1)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_first_rate_limit_holds_for_batches_that_wait_for_a_slot(
    valkey: Server, pool: str
) -> None:
    with Scene(valkey.fresh_url(), pool, concurrency=1) as scene:
        pausing = scene.task("pausing")
        _, gates = gather(scene, lambda: pausing.delay_many(range(8)))
        assert scene.broker.unacked() == 9
        ask = {"reply": True, "timeout": 10, "limit": 1}
        scene.app.control.rate_limit(pausing.name, "1/h", **ask)
        unblock(scene, gates)
        eventually(lambda: scene.traces.total() == 9)
        pausing.delay_many(range(8, 11))
        throughout(lambda: scene.traces.total() == 9, 0.5)
        scene.app.control.rate_limit(pausing.name, "0", **ask)
        eventually(lambda: scene.traces.total() == 12)
        eventually(scene.settled)
        assert set(scene.traces.counts().values()) == {1}


def test_batches_work_on_a_broker_that_is_not_ours(valkey: Server) -> None:
    with Scene(valkey.fresh_url(), env={"CELERIAC_TEST_STOCK": "1"}) as scene:
        results = [scene.task("flaky").delay(value) for value in (1, 2, 3)]
        assert outcomes(results) == [1, 2, 3]
        eventually(scene.settled)
        scene.worker.send(signal.SIGTERM)
        assert scene.worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_on_a_broker_that_is_not_ours_items_gather_while_all_slots_are_busy(
    valkey: Server, pool: str
) -> None:
    stock = {"CELERIAC_TEST_STOCK": "1"}
    with Scene(valkey.fresh_url(), pool, env=stock, concurrency=2) as scene:
        held = scene.task("held")
        for gate in ("one", "two"):
            block(scene, gate)
        results = [held.delay(f"item-{number}", "three") for number in range(20)]
        eventually(lambda: {result.id for result in results} <= scene.inspect("reserved"))
        scene.traces.open("three", times=20)
        scene.traces.open("one")
        eventually(lambda: all(result.ready() for result in results), 20)
        assert b"20" in scene.traces.client.lrange("sizes", 0, -1)
        scene.traces.open("two")


def test_on_a_broker_that_is_not_ours_a_solo_worker_gathers_for_max_wait(valkey: Server) -> None:
    with Scene(valkey.fresh_url(), "solo", env={"CELERIAC_TEST_STOCK": "1"}) as scene:
        by_tenant = scene.task("by_tenant")
        results = [by_tenant.delay({"tenant": str(number)}) for number in (1, 2, 1, 2)]
        assert outcomes(results) == [["1"], ["2"], ["1"], ["2"]]
        sizes = scene.traces.client.lrange("sizes", 0, -1)
        assert sizes == [b"2", b"2"]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
def test_an_item_that_succeeded_before_its_worker_was_lost_is_not_run_again(
    valkey: Server,
) -> None:
    url = valkey.fresh_url()
    scene = Scene(url)
    results = [scene.task("load").delay({"number": number}) for number in range(1, 4)]
    scene.app.backend.store_result(results[1].id, "kept", "SUCCESS")
    rig = Rig(url)
    rig.mark(rig.fetch(queue="default"), Mark.REDELIVERED)  # as reclaim does
    with scene:
        assert [result.get(timeout=20) for result in results] == [2, "kept", 6]
        eventually(scene.settled)
        assert scene.traces.counts() == {"1": 1, "3": 1}
        assert scene.broker.ledger("default")["done"] == 3
    rig.client.close()
