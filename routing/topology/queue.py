"""One queue's entry in the table: what it may hold, and how much of a worker it may use.

`LiveQueue` is the same at run time, when settings may take the place of fields: see `live`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from celery.utils.time import rate as per_second
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

OverflowPolicy = Literal["reject", "block", "drop_oldest", "drop_newest", "dead_letter"]


#: Slots are asked for in whole messages; text and booleans are mistakes, not numbers.
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def starts_per_second(value: Any) -> float:
    """Return what a rate in Celery's notation means.

    Raises:
        ValueError: it is none, or nothing would ever start.

    >>> [starts_per_second(rate) for rate in ("50/s", "30/m", 2)]
    [50.0, 0.5, 2.0]
    """
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            found = float(per_second(value))
        except (ValueError, KeyError, OverflowError):
            found = 0.0
        if 0 < found < math.inf:
            return found
    raise ValueError(
        "rate must be a number of starts a second that is more than 0, or such as '50/s', '10/m' "
        f"or '100/h', got {value!r}"
    )


def _as_rate(value: Any) -> Any:
    if value is not None:
        starts_per_second(value)
    return value


#: Starts in a span of time, in Celery's notation; None for no bound.
Rate = Annotated[str | float | None, BeforeValidator(_as_rate)]


class QueueConfig(BaseModel):
    """What one queue may hold, and how much of a worker it may use."""

    model_config = STRICT

    weight: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Share of the time of a worker's slots while other queues also have work, "
        "relative to their weights. Default 1: all queues are equal until somebody says "
        "otherwise.",
    )
    reserve: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Slots of each worker that no other queue may take; a worker's last slot is "
        "never reserved. Default 0: an idle slot is anybody's, so that nothing stands still for "
        "work that may never come.",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most slots of each worker that this queue may hold at once. Default "
        "none: a queue may use the whole worker while the others have no work.",
    )
    lend_below: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Seconds: slots of the reserve that stand idle are lent to tasks of other "
        "queues whose measured run time is shorter. Default none: a reserve is held, so that "
        "urgent work never waits for what was lent.",
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most slots of all workers together that run this queue's work at once, such "
        "as a database can bear. Default none: every worker uses what its own limit allows.",
    )
    rate: Rate = Field(
        None,
        description="Most starts of all workers together in a span of time, in Celery's notation: "
        "'50/s', '10/m', '100/h', or a number a second. Default none: work starts as soon as a "
        "slot is free.",
    )
    paused: bool = Field(
        False,
        description="Whether nothing of this queue is started; it accepts all the same, and what "
        "runs ends. Default false. `celery queues set <queue> paused=true` pauses it at run time.",
    )
    prefetch: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most unfinished messages that one worker may hold from this queue: a cap; it "
        "fetches what its slots can start soon. Default none: 32, enough to hide the broker's "
        "round trip behind tasks of less than a millisecond; 2 for each slot if that is more; and "
        "where a batch task goes, (slots + 1) times its max_size if that is more, so that the "
        "next batch is there when one of those in the slots ends. It must be at least "
        "max_size; with less than the slots that the queue may have (`limit`), some never run "
        "any of it.",
    )
    max_length: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most messages that may wait. Default none: a bound loses or delays "
        "work, so it has to be chosen.",
    )
    max_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most bytes of messages that may wait. Default none: max_length is easier to "
        "reason about where messages are of one size.",
    )
    max_message_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most bytes of one message, as stored. A larger one is refused with "
        "MessageTooLarge, whatever the overflow policy. Default none: the broker's own limit "
        "(512 MB) holds.",
    )
    max_delayed: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Most messages with a countdown or an ETA that may wait for their time; above "
        "that they overflow as the others do. Default none, as for max_length.",
    )
    overflow: OverflowPolicy = Field(
        "reject",
        description="What happens to a message above a bound of the queue. Default reject: the "
        "producer gets QueueFull and decides, which is the only policy that never surprises.",
    )
    block_timeout: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Seconds that overflow = 'block' waits for room before it raises "
        "QueueFull. Default none: it waits as long as it takes.",
    )
    max_age: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Seconds after which a message that has not started is ended as "
        "expired. Default none: work does not become worthless by waiting "
        "unless somebody says so.",
    )
    log_drops: bool = Field(
        True,
        description="Whether drops are logged, at most once a second, with the number since the "
        "last line. Default true: nothing is lost silently. They are counted in any case.",
    )
    max_deliveries: Annotated[int, Field(ge=1)] = Field(
        5,
        description="Times that a message may kill its worker before it is dead-lettered. "
        "Default 5: enough for a machine that fails now and then, few enough that one message "
        "does not keep a fleet restarting. Only starts are counted.",
    )
    max_dead: Annotated[int, Field(ge=0)] = Field(
        10_000,
        description="Most dead letters that are kept; the oldest make room. 0 keeps none: what "
        "fails has failed. Default 10000, some 20 MB of ordinary messages with their errors.",
    )
    max_dead_age: Annotated[float, Field(gt=0)] = Field(
        14 * 86_400.0,
        description="Seconds after which a dead letter is dropped. Default 14 days: somebody who "
        "comes back from a holiday finds it.",
    )

    @property
    def starts_per_second(self) -> float | None:
        """The rate as starts a second; None for no bound."""
        return None if self.rate is None else starts_per_second(self.rate)

    @model_validator(mode="after")
    def _fields_fit_together(self) -> QueueConfig:
        if self.limit is not None and self.reserve > self.limit:
            raise ValueError(f"reserve must be at most limit ({self.limit}), got {self.reserve}")
        if self.lend_below is not None and not self.reserve:
            raise ValueError("lend_below needs a reserve, which it lends: got none")
        bounds = (self.max_length, self.max_bytes, self.max_delayed)
        if self.overflow != "reject" and not any(bounds):
            raise ValueError(
                f"overflow = {self.overflow!r} needs a bound: max_length, max_bytes or max_delayed"
            )
        if self.block_timeout is not None and self.overflow != "block":
            raise ValueError(
                f"block_timeout needs overflow = 'block', got overflow = {self.overflow!r}"
            )
        return self


class LiveQueue(QueueConfig):
    """What holds for a queue now: its entry in the table, or a setting in the place of a field."""

    drain: bool = Field(
        False,
        description="Whether new work is refused with QueueDraining, while what was accepted is "
        "worked off: retries, links, delays and replays of it still go in. Default false. Only a "
        "setting, as a queue that takes nothing is no queue of a table.",
    )
