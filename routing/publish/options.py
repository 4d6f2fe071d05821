"""The options of a call: which are known, and which is one that was misspelt.

Celery takes any option and passes it on, into the message or to ``before_task_publish``; so a
misspelt one is nobody's error, and the message goes where a call without it goes. Only what is
close to an option that decides where, or when, a message goes is refused; all else passes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Task
from kombu import Producer

from routing.errors import UnknownOption

#: What decides where and when a message goes.
DECIDING = (
    "priority",
    "low_priority",
    "queue",
    "exchange",
    "routing_key",
    "countdown",
    "eta",
    "expires",
    "batch",
)

#: What has a meaning besides: an option of a signature, of beat, of Celery's own calls.
_ALSO_KNOWN = frozenset((*DECIDING, "immutable", "stamp", "stamps", "periodic_task_name"))

#: A shorter name is one typing error away from too many others: ``meta`` is no ``eta``.
_SHORTEST = 5


def _parameters() -> frozenset[str]:
    takers = (
        Task.apply_async,
        Task.apply,
        Task.retry,
        Celery.send_task,
        AMQP.as_task_v1,
        AMQP.as_task_v2,
        Producer.publish,
    )
    return frozenset(name for taker in takers for name in inspect.signature(taker).parameters)


KNOWN = _ALSO_KNOWN | _parameters()


def check_options(task_name: str, options: Mapping[str, Any], *, levels: Iterable[str]) -> None:
    """Refuse a misspelt option.

    Arguments:
        task_name: the task's name, for messages.
        options: the options of a call.
        levels: the names of levels; ``high_priority=True`` is none of ours, and means one.

    Raises:
        UnknownOption: the message says what was meant.
    """
    batch = options.get("batch")
    if batch is not None and not isinstance(batch, bool):
        raise UnknownOption(
            f"task {task_name!r}: batch must be True, or False for an item that runs alone, got "
            f"{batch!r}"
        )
    if options.keys() <= KNOWN:
        return
    stamps = options.get("stamped_headers") or ()
    for name in options.keys() - KNOWN:
        if name not in stamps and (meant := _meant(name, tuple(levels))):
            raise UnknownOption(
                f"task {task_name!r}: unknown option {name!r}, did you mean {meant}? An option of "
                "your own with this name goes into headers={...}"
            )


@functools.lru_cache(maxsize=1024)
def _meant(name: str, levels: tuple[str, ...]) -> str | None:
    """Return how the option that was probably meant is written."""
    plain = _plain(name)
    for known in DECIDING:
        if plain == _plain(known):
            return repr(known)
    for level in levels:
        if plain == _plain(f"{level}_priority"):
            return f'priority="{level}"'
    near = [(edits, known) for known in DECIDING if (edits := _typing_errors(plain, known))]
    return repr(min(near)[1]) if near else None


def _plain(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def _typing_errors(plain: str, known: str) -> int | None:
    """Return how many typing errors make one of the other; None where that is too many."""
    meant = _plain(known)
    allowed = 1 if len(meant) < 8 else 2
    if min(len(plain), len(meant)) < _SHORTEST - 1 or len(meant) < _SHORTEST:
        return None
    if plain[0] != meant[0] or abs(len(plain) - len(meant)) > allowed:
        return None
    edits = _distance(plain, meant)
    return edits if edits <= allowed else None


def _distance(one: str, other: str) -> int:
    """Return the letters to add, drop, replace or swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
