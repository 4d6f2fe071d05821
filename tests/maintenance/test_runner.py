"""The thread that does a worker's upkeep."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from routing import install
from routing.maintenance import runner
from routing.maintenance.runner import Upkeep, _Runner
from tests.support.apps import AppFactory
from tests.support.broker import Broker


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url)
    install(app, {"queues": {"main": {}}})
    return app


class Job:
    """A job that notes that it ran."""

    interval_seconds = 0.01

    def __init__(self) -> None:
        self.ran = threading.Event()

    def run(self, channel: Any) -> None:
        self.ran.set()


class Stuck(Job):
    """A job that waits for something that does not come."""

    def __init__(self) -> None:
        super().__init__()
        self.end = threading.Event()

    def run(self, channel: Any) -> None:
        super().run(channel)
        self.end.wait(30)


def test_a_job_that_waits_does_not_hold_up_the_others(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, job = Stuck(), Job()
    monkeypatch.setattr(runner, "JOBS", (lambda _: stuck, lambda _: job))
    with app.connection_for_read() as connection:
        consumer = SimpleNamespace(channel=connection.default_channel)
        parent = SimpleNamespace(app=app, task_consumer=consumer)
        upkeep = Upkeep(parent)
        upkeep.start(parent)
        assert stuck.ran.wait(20)
        job.ran.clear()
        assert job.ran.wait(20)
        upkeep.stop(parent)
        stuck.end.set()


def test_upkeep_goes_on_after_whatever_a_connection_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [RuntimeError("a riddle")]

    def connect() -> Any:
        if errors:
            raise errors.pop()
        return nullcontext(SimpleNamespace(default_channel=None))

    job = Job()
    running = _Runner(SimpleNamespace(connection_for_read=connect), job)
    assert job.ran.wait(20)
    running.stop()
    assert "upkeep cannot connect" in caplog.text


def test_a_worker_that_stops_lets_a_job_settle_what_it_is_in_the_middle_of(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck()
    monkeypatch.setattr(runner, "JOBS", (lambda _: stuck,))
    with app.connection_for_read() as connection:
        consumer = SimpleNamespace(channel=connection.default_channel)
        parent = SimpleNamespace(app=app, task_consumer=consumer)
        upkeep = Upkeep(parent)
        upkeep.start(parent)
        assert stuck.ran.wait(20)
        upkeep.stop(parent)
        threading.Timer(0.1, stuck.end.set).start()
        upkeep.shutdown(parent)
        assert stuck.end.is_set()
