"""What has ended is gone at once: nothing of it waits for the garbage collector.

In the pools where the worker and its tasks share a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from celery import Celery

from tests.apps.basic import close
from tests.apps.refusals import create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

#: More than what a few new connections leave, some 70 each, once.
MANY = 300


@dataclass(frozen=True, kw_only=True)
class Place:
    """A worker whose tasks can tell how much garbage lies in its process."""

    app: Celery
    worker: Worker
    broker: Broker

    def garbage(self) -> int:
        """Collect what is unreachable, and let nobody collect until the next time."""
        found: int = self.app.tasks["refusals.collect"].delay().get(timeout=10)
        return found

    def run(self, task: str, how: str, count: int) -> None:
        for n in range(count):
            name = f"{how}-{n}"
            if task == "item":
                self.app.tasks["refusals.item"].delay({"name": name, "how": how})
            else:
                self.app.tasks["refusals.attempt"].delay(name, how, 0)
        eventually(self.is_done, 30)

    def is_done(self) -> bool:
        return self.broker.holds_nothing() and not any(
            self.broker.length(queue) or self.broker.delayed(queue) for queue in ("items", "bulk")
        )


@pytest.fixture(scope="module", params=["threads", "gevent"])
def at(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Place]:
    url = valkey.fresh_url()
    app = create(url)
    worker = Worker("tests.apps.refusals", request.param, env={"CELERIAC_TEST_BROKER": url})
    with ExitStack() as stack:
        stack.callback(close, app)
        broker = stack.enter_context(Broker(url))
        stack.enter_context(worker)
        yield Place(app=app, worker=worker, broker=broker)


@pytest.mark.parametrize("how", ["succeed", "fail", "retry"])
@pytest.mark.parametrize("task", ["attempt", "item"])
def test_messages_that_have_ended_leave_nothing_for_the_collector(
    at: Place, task: str, how: str
) -> None:
    found = []
    for count in (20, 20, 20 + MANY):
        at.run(task, how, count)
        found.append(at.garbage())
    assert found[2] - found[1] < MANY, "each message leaves garbage"
