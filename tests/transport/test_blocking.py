"""Who waits for room in a full queue whose overflow policy is to block, and who must not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.beat import ScheduleEntry, Scheduler, Service

from routing import QueueFull, install
from routing.transport import room_wait, runtime
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "queues": {
        "urgent": {},
        "patient": {"max_length": 2, "overflow": "block"},
        "other": {"max_length": 2, "overflow": "block", "block_timeout": 0.05},
    },
}


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url, result_backend="cache+memory://")
    install(app, TABLE)

    @app.task(name="noop", shared=False)
    def noop(row: Any = None) -> None: ...

    for queue in ("patient", "other"):
        noop.apply_many([((), {})] * 2, queue=queue)
    return app


CALLS: dict[str, Callable[[Celery], Any]] = {
    "one": lambda app: app.tasks["noop"].apply_async(queue="patient"),
    "by name": lambda app: app.send_task("noop", queue="patient"),
    "many": lambda app: app.tasks["noop"].delay_many([1, 2], queue="patient").raise_for_refused(),
    "group": lambda app: group(members(app)).apply_async(),
    "chord": lambda app: chord(members(app))(app.tasks["noop"].si()),
}


def members(app: Celery) -> list[Any]:
    noop = app.tasks["noop"]
    return [noop.si().set(queue="patient"), noop.si().set(queue="urgent")]


@pytest.mark.parametrize("call", CALLS)
def test_an_event_loop_is_not_stopped(app: Celery, call: str) -> None:
    async def main() -> None:
        with pytest.raises(Exception, match=r"is full.*asyncio\.to_thread"):
            CALLS[call](app)

    asyncio.run(main())


def test_a_thread_of_an_event_loop_waits_while_the_loop_goes_on(
    app: Celery, broker: Broker
) -> None:
    async def main() -> None:
        sending = asyncio.create_task(asyncio.to_thread(CALLS["one"], app))
        await asyncio.sleep(0.05)
        assert not sending.done()
        broker.client.rpop("patient")
        await asyncio.wait_for(sending, 10)

    asyncio.run(main())


def test_a_workers_own_process_does_not_wait(app: Celery) -> None:
    here = runtime.lookup(app.amqp.runtime_name)
    here.is_worker = True
    with pytest.raises(QueueFull, match="a worker does not wait for room") as caught:
        CALLS["one"](app)
    here.is_worker = False
    assert caught.value.why_not_waited


@pytest.fixture
def in_a_task(app: Celery) -> Any:
    """A task that runs in a pool process of a worker."""
    from celery._state import _task_stack

    task = app.tasks["noop"]
    task.push_request(id="x", called_directly=False, is_eager=False, delivery_info={})
    _task_stack.push(task)
    yield task
    _task_stack.pop()
    task.pop_request()


@pytest.mark.usefixtures("in_a_task")
def test_a_task_does_not_wait_for_room_that_its_own_worker_makes(app: Celery) -> None:
    with pytest.raises(QueueFull, match="a worker does not wait for room"):
        CALLS["one"](app)


@pytest.mark.usefixtures("in_a_task")
def test_a_task_waits_for_room_that_other_workers_make(app: Celery) -> None:
    app.amqp.queues.select(["urgent"])
    with pytest.raises(QueueFull) as caught:
        app.tasks["noop"].apply_async(queue="other")
    assert not caught.value.why_not_waited


# -- beat ------------------------------------------------------------------------------------------


class Schedule(Scheduler):
    """Both entries, the full queue's first."""

    def setup_schedule(self) -> None:
        self.schedule = {
            queue: ScheduleEntry(
                name=queue,
                task=task,
                schedule=timedelta(seconds=0.05),
                options={"queue": queue},
                app=self.app,
            )
            for queue, task in (("patient", "noop"), ("urgent", "known elsewhere"))
        }


class Own(Schedule):
    """Sends entries in a way of its own."""

    def apply_async(self, entry: Any, *_: Any, **__: Any) -> Any:
        return self.app.send_task(entry.task, **entry.options)


@pytest.mark.parametrize("kind", [Schedule, Own])
def test_beat_logs_what_a_full_queue_refused_and_sends_its_other_entries(
    app: Celery, broker: Broker, caplog: pytest.LogCaptureFixture, kind: type[Scheduler]
) -> None:
    beat = Service(app, scheduler_cls=kind)
    beat.max_interval = 0.05
    thread = threading.Thread(target=beat.start)
    thread.start()
    try:
        eventually(lambda: broker.length("urgent") >= 3)
    finally:
        beat.stop(wait=True)
        thread.join(10)
    assert broker.length("patient") == 2
    refusals = [r for r in caplog.records if "Message Error" in r.message]
    assert len(refusals) >= 2
    assert all("beat does not wait" in str(record.exc_info) for record in refusals)


def test_a_schedule_that_is_driven_by_hand_does_not_wait(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Schedule(app)
    schedule.apply_entry(schedule.schedule["patient"])
    assert "beat does not wait" in caplog.text


def test_who_sends_beside_beat_in_the_same_process_waits(app: Celery, broker: Broker) -> None:
    beat = Service(app, scheduler_cls=Schedule)
    thread = threading.Thread(target=beat.start)
    thread.start()
    try:
        with pytest.raises(QueueFull) as caught:
            app.tasks["noop"].apply_async(queue="other")
    finally:
        beat.stop(wait=True)
        thread.join(10)
    assert not caught.value.why_not_waited


# -- a long wait -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["one", "many", "group"])
def test_a_producer_that_waits_long_says_so_now_and_then(
    app: Celery,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    monkeypatch.setattr(room_wait, "TELL_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(room_wait, "TELL_EVERY_SECONDS", 0.05)
    caplog.set_level(logging.WARNING, "routing.transport.room_wait")
    producer = threading.Thread(target=CALLS[call], args=[app])
    producer.start()
    try:
        eventually(lambda: len(caplog.records) >= 2)
    finally:
        broker.client.delete("patient")
        producer.join(10)
    assert not producer.is_alive()
    assert "queue 'patient' is full: 2 of at most 2 messages wait" in caplog.records[0].message
    assert "block_timeout bounds the wait" in caplog.records[0].message


def test_a_short_wait_is_not_worth_a_line(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(QueueFull):
        app.tasks["noop"].apply_async(queue="other")
    assert caplog.records == []
