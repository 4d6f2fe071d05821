"""The app of `benchmarks.apps.queued`, whose worker notes when an urgent message passes where.

Its parent notes it from around methods of ours, in memory, and writes between two turns of its
loop. The queue of batches has a task of its own; else the commands are those of ``queued``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, BinaryIO

from kombu.utils import eventio

from batching import Batch, BatchTask
from batching.consumer.unit import BatchUnit
from benchmarks.apps import queued
from benchmarks.apps.marks import BATCH_SECONDS, BATCH_SIZE, BATCHES, FILE, TURN, URGENT
from benchmarks.apps.queued import settings
from routing.inflight.fetch_state import Exchanging
from routing.inflight.sightings import Sightings
from routing.transport.delivery import Delivery
from routing.transport.fetcher import Fetcher
from routing.transport.inbox import Inbox
from routing.worker.dispatcher import Dispatcher
from routing.worker.prefork import Pipes

Method = Callable[..., Any]

app = queued.app


@app.task(
    name="bench.batch",
    base=BatchTask,
    queue=BATCHES,
    max_size=BATCH_SIZE,
    max_wait=1.0,
    ignore_result=True,
)
def run_batch(batch: Batch[str]) -> None:
    """Take as long as any call."""
    time.sleep(BATCH_SECONDS)


def fill(*, queue: str, count: int, size_bytes: int, **other: Any) -> int:
    """Put messages into a queue, items of batches into theirs."""
    if queue != BATCHES:
        return queued.fill(queue=queue, count=count, size_bytes=size_bytes, **other)
    run_batch.delay_many(["x" * size_bytes] * count).raise_for_refused()
    return count


class Busy:
    """What the loop does now, since when, and what was noted within it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began_ns, self._began_cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        self._inner_ns = self._inner_cpu_ns = 0

    def end(self, outer: Busy | None) -> str:
        """Return its note."""
        ended_ns = time.monotonic_ns()
        took_ns = ended_ns - self._began_ns
        cpu_ns = time.thread_time_ns() - self._began_cpu_ns
        if outer is not None:
            outer._inner_ns += took_ns
            outer._inner_cpu_ns += cpu_ns
        if self._what != TURN:
            took_ns, cpu_ns = took_ns - self._inner_ns, cpu_ns - self._inner_cpu_ns
        return f"span {self._what} {self._began_ns} {ended_ns} {took_ns} {cpu_ns}"


class Notes:
    """Takes notes, and writes them when the loop has nothing else to do."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._file: BinaryIO | None = None
        #: The innermost last.
        self._busy: list[Busy] = []

    def note(self, *parts: object) -> None:
        """Note that something happens now."""
        self._lines.append(" ".join(map(str, (*parts, time.monotonic_ns()))))

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Note how long the loop is busy with something."""
        self._busy.append(Busy(what))
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def poll(self) -> Iterator[None]:
        """End a turn of the loop, write, and begin the next turn after the poll."""
        if len(self._busy) > 1:  # somebody waits by himself, within a turn
            yield
            return
        if self._busy:
            self._end()
        if self._lines:
            self._write()
        try:
            yield
        finally:
            self._busy.append(Busy(TURN))

    def _end(self) -> None:
        busy = self._busy.pop()
        self._lines.append(busy.end(self._busy[-1] if self._busy else None))

    def _write(self) -> None:
        if self._file is None:
            self._file = (settings.directory / FILE).open("ab", buffering=0)
        self._file.write(("\n".join(self._lines) + "\n").encode())
        self._lines.clear()


NOTES = Notes()


def around(owner: Any, name: str) -> Callable[[Method], None]:
    """Put a function in the place of a method; it gets the method, and its arguments."""

    def put(function: Method) -> None:
        method = getattr(owner, name)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(method, *args, **kwargs)

        setattr(owner, name, call)

    return put


def time_spans() -> None:
    """Note what the loop is busy with."""
    spans = {
        "send": (Fetcher, "send_next"),
        "reply": (Fetcher, "read_reply"),
        "delivery": (Inbox, "deliver_slice"),
        "hand_over": (Dispatcher, "_hand_over"),
        "packing": (BatchUnit, "hand_over"),
        "starts": (BatchUnit, "on_accepted"),
        "endings": (BatchUnit, "on_done"),
        "answers": (Pipes, "_load"),
    }
    for what, (owner, name) in spans.items():

        def timed(method: Method, *args: Any, what: str = what, **kwargs: Any) -> Any:
            with NOTES.span(what):
                return method(*args, **kwargs)

        around(owner, name)(timed)

    @around(type(eventio.poll()), "poll")
    def poll(method: Method, *args: Any) -> Any:
        with NOTES.poll():
            return method(*args)


def follow_fetches() -> None:
    """Note when the worker hears of urgent messages, and when it fetches them."""

    @around(Sightings, "hear")
    def hear(method: Method, self: Sightings, queues: Any) -> None:
        heard = list(queues)
        if URGENT in heard:
            NOTES.note("bell")
        method(self, heard)

    @around(Sightings, "take")
    def take(method: Method, self: Sightings, reply: Any, **options: Any) -> None:
        if URGENT in reply.heard:
            NOTES.note("bell")
        method(self, reply, **options)

    @around(Fetcher, "_send_exchange")
    def send_exchange(method: Method, self: Any, step: Any) -> None:
        method(self, step)
        if isinstance(state := self._state, Exchanging) and URGENT in state.coming:
            NOTES.note("exchange", state.fetch.prefix)

    @around(Fetcher, "_take")
    def take_reply(method: Method, self: Any, sent: Exchanging, reply: Any) -> Any:
        if URGENT in sent.coming:
            NOTES.note("reply", sent.fetch.prefix)
        return method(self, sent, reply)


def follow_messages() -> None:
    """Note when urgent messages are delivered and handed over."""

    @around(Delivery, "_hand_on")
    def hand_on(method: Method, self: Any, arrival: Any, callback: Any, message: Any) -> None:
        if arrival.queue == URGENT:
            NOTES.note("delivery", message["headers"]["id"], prefix_of(arrival.tag))
        method(self, arrival, callback, message)

    @around(Dispatcher, "_hand_over")
    def hand_over(method: Method, self: Any, queue: str, unit: Any) -> None:
        method(self, queue, unit)
        if queue == URGENT:
            for request in unit.requests:
                NOTES.note("handed", request.id)


def prefix_of(tag: str) -> str:
    """Return the prefix of the fetch that gave a message its tag: the fetcher and its call."""
    return ":".join(tag.split(":")[:2]) + ":"


VERBS: dict[str, Any] = {**queued.VERBS, "fill": fill}

if __name__ == "__main__":
    verb, arguments = sys.argv[1:]
    print(json.dumps({"made": VERBS[verb](**json.loads(arguments))}))
else:
    time_spans()
    follow_fetches()
    follow_messages()
