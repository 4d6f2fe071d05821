"""A failure costs a worker no memory: not while its batch is settled, and not afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from celery import Celery

from tests.apps.basic import close
from tests.apps.failing import create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

#: What a process may grow by. Six hundred failures with their live errors take about 200.
MEGABYTES = 40

FAILURES = 600


class Site(NamedTuple):
    """A running worker, and what a test needs to talk to it."""

    app: Celery
    worker: Worker
    broker: Broker

    def run(self, task: str, count: int) -> None:
        self.app.tasks[f"failing.{task}"].delay_many(range(count))
        eventually(
            lambda: self.broker.has_ended("default"),
            60,
            message=lambda: self.worker.log[-5_000:],
        )

    def processes(self) -> list[int]:
        return [self.worker.pid, *self.worker.children]


@pytest.fixture(scope="module", params=["prefork", "threads"])
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker(
        "tests.apps.failing", request.param, 1, env={"CELERIAC_TEST_BROKER": url}, options=["-E"]
    )
    with worker, Broker(url) as broker:
        app = create(url)
        yield Site(app, worker, broker)
        close(app)


def kilobytes(pid: int, field: str) -> int:
    """Return a field of a process's status: VmRSS now, or VmHWM at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("task", ["heavy", "heavy_batch", "shared_batch"])
def test_failures_take_no_memory_and_leave_none(site: Site, task: str) -> None:
    site.run(task, 20)
    before = {pid: kilobytes(pid, "VmRSS") for pid in site.processes()}
    site.run(task, FAILURES)
    assert site.processes() == list(before)
    peaks = {pid: kilobytes(pid, "VmHWM") - rss for pid, rss in before.items()}
    assert max(peaks.values()) < MEGABYTES * 1024, peaks
