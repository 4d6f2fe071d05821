"""Flights out of New York in 2013: a batched load, and a question that cannot wait.

``load.delay_many(rows)`` sends rows one by one as far as the caller can tell; workers insert them
500 at a time, and each row has its own ending. ``status`` is an ordinary task on the urgent queue.
"""

from __future__ import annotations

import time
from typing import Annotated, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from batching import Batch, BatchTask
from tasks import database
from tasks.celery import app


class Flight(BaseModel):
    """A flight that departed. One that never did has no ``dep_time`` and is refused."""

    model_config = ConfigDict(frozen=True)

    run: Annotated[str, Field(max_length=32)] = ""
    number: int | None = None
    carrier: str
    flight: int
    tailnum: str | None = None
    origin: str
    dest: str
    time_hour: str
    sched_dep_time: int
    dep_time: int
    dep_delay: int | None = None
    arr_time: int | None = None
    arr_delay: int | None = None
    air_time: int | None = None
    distance: int


class Status(TypedDict):
    """The answer of `status`, and when its task started (seconds since the epoch)."""

    text: str
    started_at: float


sink = database.flight_sink()


@app.task(
    base=BatchTask,
    shared=False,  # this app's, not every app's of the process
    model=Flight,
    key="run",  # loads do not mix, so that each call belongs to one
    max_size=500,
    max_wait=0.2,  # seconds; a lone row lands at once when a slot is idle
    ignore_result=True,  # the row is the result
    store_errors_even_if_ignored=True,  # and whoever asks for a refused one learns why
    max_retries=20,  # while the database is away: all come again, for about a quarter of an hour
)
def load(batch: Batch[Flight]) -> None:
    """Insert the batch; rows that a first delivery inserted are left as they are."""
    return sink.write(batch)


@app.task(shared=False)
def status(item_id: str) -> Status:
    """What is known about the flight that was loaded as this item."""
    started_at = time.time()
    row = database.find_flight(item_id)
    if row is None:
        return Status(text="not loaded yet", started_at=started_at)
    flight = f"{row['carrier']} {row['flight']} {row['origin']}-{row['dest']}"
    return Status(text=f"{flight}: departed {row['dep_time']:04}", started_at=started_at)
