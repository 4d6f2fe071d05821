"""An app as people have them: urgent calls, plain tasks, and a batched load into a sink.

Tasks sleep instead of working, note what they do (`benchmarks.life.records`) and behave as their
message says (`benchmarks.life.plan`). The sink is away while a file lies in the run's folder.
"""

from __future__ import annotations

import time
from typing import Any

from celery import Task

from batching import Batch, BatchTask
from benchmarks.apps.settings import Settings, create_app
from benchmarks.life.plan import (
    BATCHED,
    CALL_SECONDS,
    ITEM_SECONDS,
    MAX_SIZE,
    PLAIN,
    RESERVED,
    SINK_AWAY,
    URGENT,
    Behaviour,
)
from benchmarks.life.records import Notebook, Step
from routing import install

#: Short, so that what a killed worker held is back soon.
LEASE_SECONDS = 6.0

#: Results go by themselves; the run looks for each of them well before.
RESULT_SECONDS = 150

#: More than the run's own kills can charge one message with, and less than unjust charges reach.
MAX_DELIVERIES = 3

RETRY_SECONDS = 0.5

#: Shares are counted in turns: without a weight, as many calls of the batched task as plain tasks
#: would take most of the slots' time, each for a few items.
PLAIN_WEIGHT = 8
MAX_WAIT_SECONDS = 0.25

settings = Settings.from_environment()

TABLE: dict[str, Any] = {
    "queues": {
        URGENT: {"reserve": RESERVED, "prefetch": 8, "max_deliveries": MAX_DELIVERIES},
        PLAIN: {"weight": PLAIN_WEIGHT, "prefetch": 32, "max_deliveries": MAX_DELIVERIES},
        BATCHED: {"prefetch": settings.prefetch, "max_deliveries": MAX_DELIVERIES},
    },
    "routes": {"life.urgent": URGENT, "life.plain": PLAIN, "life.batched": BATCHED},
    "default_queue": PLAIN,
    "lease_seconds": LEASE_SECONDS,
}

app = create_app("living", settings)
app.conf.result_expires = RESULT_SECONDS
install(app, TABLE)

notebook = Notebook(settings.directory)


class Doomed(Exception):
    """This message was sent to fail."""


class SinkAway(ConnectionError):
    """The sink does not answer."""


def _refuse_if_away() -> None:
    if (settings.directory / SINK_AWAY).exists():
        raise SinkAway("connection refused by the sink")


class Settles(Task):
    """Notes when all is done where a task ran, whatever it came to."""

    def after_return(self, *ending: Any) -> None:
        """Note it for what has ended: status, value, id, arguments."""
        self._note_settled(ending[3])

    def on_retry(self, *ending: Any) -> None:
        """Note it for what is to be tried again: error, id, arguments."""
        self._note_settled(ending[2])

    def _note_settled(self, args: Any) -> None:
        notebook.note(Step.SETTLED, [(args[0], self.request.retries)])


class SettlesBatches(Settles, BatchTask):
    """The same for the items of batches."""


@app.task(name="life.urgent", bind=True, base=Settles)
def urgent(self: Any, number: int, seconds: float, behaviour: int, payload: str) -> int:
    """Somebody waits for this one."""
    return _work(self, number, seconds, behaviour)


@app.task(
    name="life.plain",
    bind=True,
    base=Settles,
    autoretry_for=(SinkAway,),
    default_retry_delay=RETRY_SECONDS,
    max_retries=1000,
)
def plain(self: Any, number: int, seconds: float, behaviour: int, payload: str) -> int:
    """One of many kinds of work."""
    return _work(self, number, seconds, behaviour)


def _work(task: Any, number: int, seconds: float, behaviour: int) -> int:
    attempt = task.request.retries
    run = [(number, attempt)]
    notebook.note(Step.STARTED, run)
    time.sleep(seconds)
    if behaviour == Behaviour.DOOMED:
        notebook.note(Step.FAILED, run)
        raise Doomed(f"message {number} was sent to fail")
    if behaviour == Behaviour.FLAKY and attempt == 0:
        notebook.note(Step.AGAIN, run)
        raise task.retry(countdown=RETRY_SECONDS)
    if behaviour == Behaviour.SINKS:
        try:
            _refuse_if_away()
        except SinkAway:
            notebook.note(Step.REFUSED, run)
            raise
    notebook.note(Step.DONE, run)
    return number


@app.task(
    name="life.batched",
    base=SettlesBatches,
    max_size=MAX_SIZE,
    max_wait=MAX_WAIT_SECONDS,
    autoretry_for=(SinkAway,),
    default_retry_delay=RETRY_SECONDS,
    max_retries=1000,
)
def batched(batch: Batch[Any]) -> None:
    """Load items; some are refused, some try again, and all do while the sink is away."""
    runs = {item.id: (item.args[0], item.attempt - 1) for item in batch}
    size = len(batch)
    notebook.note(Step.STARTED, runs.values(), size)
    time.sleep(CALL_SECONDS + ITEM_SECONDS * size)
    sorted_items: dict[Step, list[Any]] = {Step.FAILED: [], Step.AGAIN: [], Step.DONE: []}
    for item in batch:
        sorted_items[_step(item)].append(item)
    for item in sorted_items[Step.FAILED]:
        item.fail(Doomed(f"item {item.args[0]} was sent to fail"))
    for item in sorted_items[Step.AGAIN]:
        item.retry(countdown=RETRY_SECONDS)
    refused = _load(sorted_items[Step.DONE])
    if refused:
        sorted_items[Step.REFUSED] = sorted_items.pop(Step.DONE)
    for step, items in sorted_items.items():
        notebook.note(step, [runs[item.id] for item in items], size)
    # Both are how people write it: each item fails, or the call does.
    if refused and size % 2:
        raise refused
    for item in sorted_items.get(Step.REFUSED, ()):
        item.fail(refused)


def _step(item: Any) -> Step:
    behaviour = item.args[1]
    if behaviour == Behaviour.DOOMED:
        return Step.FAILED
    return Step.AGAIN if behaviour == Behaviour.FLAKY and item.attempt == 1 else Step.DONE


def _load(items: list[Any]) -> SinkAway | None:
    """Give the items their results, unless the sink refuses them."""
    try:
        _refuse_if_away()
    except SinkAway as error:
        return error
    for item in items:
        item.done(item.args[0])
    return None
