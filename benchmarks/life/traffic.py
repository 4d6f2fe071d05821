"""The producer: sends a plan's messages at their times, in a process of its own.

``python -m benchmarks.life.traffic PLAN`` takes the plan's arguments as JSON. It goes straight to
the broker, and keeps no results: nobody waits for them here. Single messages go out by
``apply_async``, the slices of a burst by ``apply_many``. What the broker refuses for now is sent
again.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.apps import living
from benchmarks.life.plan import BATCHED, BEGIN_FILE, PLAIN, URGENT, Message, Plan
from benchmarks.life.records import SentBook

#: A broker that refuses for longer ends the run.
REFUSED_SECONDS = 60.0
PAUSE_SECONDS = 0.05

TASKS = {URGENT: living.urgent, PLAIN: living.plain, BATCHED: living.batched}


def main(plan: Plan, directory: Path) -> None:
    """Send everything; the moment of the plan's begin is written to a file first."""
    messages = plan.messages()
    book = SentBook(directory)
    with living.app.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection(max_retries=3)
        begin = time.monotonic()
        path = directory / BEGIN_FILE
        path.with_suffix(".new").write_text(repr(begin))
        path.with_suffix(".new").rename(path)
        for _, group in itertools.groupby(messages, key=_together):
            slice_ = list(group)
            time.sleep(max(0.0, begin + slice_[0].at - time.monotonic()))
            _send(slice_, book, producer)


def _together(message: Message) -> tuple[Any, ...]:
    """Return what is the same for the messages of one slice of a burst."""
    key = (message.at, message.queue, message.is_burst)
    return key if message.is_burst else (*key, message.number)


def _send(messages: Sequence[Message], book: SentBook, producer: Any) -> None:
    deadline = time.monotonic() + REFUSED_SECONDS
    task = TASKS[messages[0].queue]
    while True:
        at = time.monotonic()
        try:
            if len(messages) == 1:
                ids = [task.apply_async(_arguments(messages[0]), producer=producer).id]
            else:
                receipts = task.apply_many([(_arguments(one), {}) for one in messages])
                receipts.raise_for_refused()
                ids = receipts.ids
        except Exception:
            # A slice is one push, so the broker has taken all of it or nothing.
            book.refused(at, messages[0].number)
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)
            continue
        book.note(at, [one.number for one in messages], ids)
        return


def _arguments(message: Message) -> tuple[Any, ...]:
    payload = "x" * message.size_bytes
    if message.queue == BATCHED:
        return (message.number, int(message.behaviour), payload)
    return (message.number, message.run_seconds, int(message.behaviour), payload)


if __name__ == "__main__":
    main(Plan.from_json(sys.argv[1]), living.settings.directory)
