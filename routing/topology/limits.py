"""Limits of tasks and keys: how much of their work may run at once, or start in a span of time.

A limit opens one gate at the broker for all of its tasks, or with a ``key`` one for each value of
an argument. The producer marks each message with its gate, the broker lets it start or not.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from routing.topology.queue import STRICT, LiveQueue, QueueConfig, Rate, starts_per_second

#: Most characters of a limit's name and of a key: the mark has to stay within what a script looks
#: at, at the end of a message.
NAME_AT_MOST, KEY_AT_MOST = 80, 64

#: What stands in a mark as it is.
_PLAIN_KEY = re.compile(r"[\w.:@/+=, -]*", re.ASCII)
_PLAIN_NAME = re.compile(r"[\w.:@/+*?\[\]!-]+", re.ASCII)


def _as_key(value: Any) -> Any:
    is_position = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or is_position or (isinstance(value, str) and value):
        return value
    raise ValueError(f"key must be the name of a parameter or a position from 0, got {value!r}")


class Limit(BaseModel):
    """How much work of the tasks of one name, or of one key, may run in all workers together."""

    model_config = STRICT

    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Most of them that run at once. Default none: as many as there are slots."
    )
    rate: Rate = Field(
        None,
        description="Most of them that start in a span of time, such as '50/s', '10/m', or a "
        "number a second. Default none: they start as soon as a slot is free.",
    )
    key: Annotated[str | Annotated[int, Field(ge=0)] | None, BeforeValidator(_as_key)] = Field(
        None,
        description="The argument, by keyword or position, each value of which has a gate of its "
        "own. Default none: all calls share one.",
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if self.concurrency is None and self.rate is None:
            raise ValueError("a limit needs a concurrency or a rate, got neither")
        return self


def limit_name_problems(name: str) -> Iterator[str]:
    """Yield why a limit cannot have this name."""
    if not _PLAIN_NAME.fullmatch(name) or len(name) > NAME_AT_MOST:
        yield (
            f"limit {name!r}: it is named by a task or a glob of at most {NAME_AT_MOST} letters, "
            "digits and the signs _.:@/+-*?[]!"
        )


def limit_for(task_name: str, limits: Mapping[str, Limit]) -> str | None:
    """Return the name of a task's limit: its own, else the first glob that matches, else None."""
    if task_name in limits:
        return task_name
    return next((name for name in limits if fnmatch.fnmatchcase(task_name, name)), None)


def mark_of(name: str, value: Any = None) -> str:
    """Return the mark of the gate for a value of a limit's key.

    >>> mark_of("tasks.send", "example.com")
    'tasks.send|example.com'
    """
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    if len(text) > KEY_AT_MOST or not _PLAIN_KEY.fullmatch(text):
        text = "~" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]
    return f"{name}|{text}"


def key_value(
    key: str | int, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[str]
) -> Any:
    """Return the value of a key in a call, None when the call does not have it.

    Arguments:
        key: the limit's.
        args: positional arguments of the call.
        kwargs: its keyword arguments.
        parameters: names of the task's positional parameters, as far as they are known.

    >>> key_value("host", ("a.example",), {}, ["host", "path"])
    'a.example'
    """
    if isinstance(key, str):
        if key in kwargs:
            return kwargs[key]
        position = parameters.index(key) if key in parameters else len(args)
    else:
        position = key
        if position >= len(args) and position < len(parameters):
            return kwargs.get(parameters[position])
    return args[position] if position < len(args) else None


def interval_ms(rate: float | None) -> str:
    """Return the milliseconds from one start to the next as a script takes them; 0 for none."""
    return f"{1000 / rate:.6f}" if rate else "0"


#: What a script is told of a queue that nothing limits.
NO_GATE = "0"


def gate_text(config: QueueConfig, *, unit: int, has_limits: bool) -> str:
    """Return what a fetch says of a queue's gate.

    Arguments:
        config: what holds for the queue now.
        unit: messages that are surely one call: of a queue that one batch task has for itself, its
            max_size.
        has_limits: whether the table limits tasks, whose messages may come to any queue.
    """
    rate = config.starts_per_second
    if config.concurrency is None and rate is None and not has_limits:
        return NO_GATE
    return f"{config.concurrency or 0}:{interval_ms(rate)}:{unit}"


def limits_text(limits: Mapping[str, Limit], units: Mapping[str, int] | None = None) -> str:
    """Return what a fetch says of the limits of tasks and keys.

    Arguments:
        limits: by name.
        units: messages of one call, of those that limit a batch task alone.
    """
    return "".join(
        f"{name}\n{limit.concurrency or 0}\n"
        f"{interval_ms(None if limit.rate is None else starts_per_second(limit.rate))}\n"
        f"{(units or {}).get(name, 1)}\n"
        for name, limit in limits.items()
    )


def reasons(
    queue: LiveQueue, *, waiting: int, slots: int, next_start_ms: int, blocked: int
) -> Iterator[str]:
    """Yield in words why work of a queue may not start now.

    Arguments:
        queue: what holds for it now.
        waiting: messages that wait in line.
        slots: slots of its gate that are held.
        next_start_ms: milliseconds until its rate lets the next work start.
        blocked: messages that wait for the gate of their task or key.

    >>> busy = LiveQueue(concurrency=3, rate="50/s")
    >>> list(reasons(busy, waiting=9, slots=3, next_start_ms=0, blocked=2))
    ['at its concurrency 3/3', 'tasks at their limits']
    """
    if queue.paused:
        yield "paused"
    if queue.concurrency is not None and slots >= queue.concurrency:
        yield f"at its concurrency {slots}/{queue.concurrency}"
    if queue.rate is not None and waiting and next_start_ms > 0:
        yield f"at its rate {queue.rate}"
    if blocked:
        yield "tasks at their limits"
