"""What holds for each queue now: the table, with the settings that somebody has stored since.

Settings live in the broker (`routing.redis.settings`) and reach every worker. Pure bookkeeping:
whoever has read them hands them in, and who goes by a field asks here, or listens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ValidationError

from routing.errors import SettingRefused
from routing.topology.model import Topology
from routing.topology.problems import close_to, problem_lines
from routing.topology.queue import STRICT, LiveQueue

logger = logging.getLogger(__name__)

#: What may be set at run time: how fast a queue is worked off, and whether. What is lost above a
#: bound, and what a dead letter is, stays the table's.
SETTABLE = (
    "prefetch",
    "weight",
    "reserve",
    "limit",
    "lend_below",
    "rate",
    "concurrency",
    "paused",
    "drain",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The value of one field of one queue, in the place of the table's.

    Attributes:
        value: the value.
        by: who has set it.
        at_ms: when, by the server's clock.
        before: what it was until then; None for none.
    """

    value: Any
    by: str
    at_ms: int
    before: Any = None


#: The settings of one queue, by field.
QueueSettings: TypeAlias = Mapping[str, Setting]


class _Checked(BaseModel):
    model_config = STRICT
    queues: dict[str, LiveQueue]


def shown(value: Any) -> str:
    """Return a value as people write it.

    >>> [shown(value) for value in (None, True, 16, "50/s")]
    ['none', 'true', '16', '50/s']
    """
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Change(NamedTuple):
    """What has just been set or reset."""

    queue: str
    fields: frozenset[str]


def with_values(queue: str, table: LiveQueue, values: Mapping[str, Any]) -> LiveQueue:
    """Return what holds for a queue with these values in the place of the table's.

    Raises:
        SettingRefused: a field cannot be set, or has a value that cannot be used.
    """
    check_names(queue, values)
    try:
        entry = {**table.model_dump(), **values}
        return _Checked.model_validate({"queues": {queue: entry}}).queues[queue]
    except ValidationError as error:
        problems = problem_lines(error, fields={"queues": list(LiveQueue.model_fields)})
    raise SettingRefused("\n".join(problems))


def check_names(queue: str, names: Iterable[str]) -> None:
    """Refuse fields that cannot be set.

    Raises:
        SettingRefused: one cannot; the message says which can.
    """
    problems = []
    for name in names:
        if name in SETTABLE:
            continue
        meant = close_to(name, SETTABLE)
        if name in LiveQueue.model_fields:
            hint = "is the table's alone: change it there, and restart the workers"
        else:
            hint = f"is unknown, did you mean {meant!r}?" if meant else "is unknown"
        known = "" if meant else "; what can be set is " + ", ".join(SETTABLE)
        problems.append(f"queue {queue!r}: field {name!r} {hint}{known}")
    if problems:
        raise SettingRefused("\n".join(problems))


@dataclass(frozen=True, slots=True)
class _State:
    """Replaced as a whole, as threads read it."""

    version: int = 0
    settings: Mapping[str, QueueSettings] = field(default_factory=dict)
    queues: Mapping[str, LiveQueue] = field(default_factory=dict)


class LiveTable:
    """The queue table of one process, with what has been set since.

    Arguments:
        table: the queue table.
    """

    def __init__(self, table: Topology) -> None:
        self.table = table
        self._table = {
            name: LiveQueue.model_construct(**queue.model_dump())
            for name, queue in table.queues.items()
        }
        self._state = _State(queues=self._table)
        self._refused: dict[str, QueueSettings] = {}
        self._lock = threading.Lock()
        #: Called with each change, in the thread that brought it.
        self.listeners: list[Callable[[Change], None]] = []

    @property
    def version(self) -> int:
        """The version of the settings that hold."""
        return self._state.version

    @property
    def queues(self) -> Mapping[str, LiveQueue]:
        """Every queue of the table, as it is now."""
        return MappingProxyType(dict(self._state.queues))

    def set_for(self, name: str) -> dict[str, str]:
        """Return what is set for a queue, by field, as people write it."""
        values = self.queue(name)
        return {
            key: shown(getattr(values, key)) for key in sorted(self._state.settings.get(name, ()))
        }

    def queue(self, name: str) -> LiveQueue:
        """Return what holds for a queue; the defaults for one that is not in the table."""
        return self._state.queues.get(name, _DEFAULTS)

    def of_table(self, name: str) -> LiveQueue:
        """Return what the table says about a queue."""
        return self._table.get(name, _DEFAULTS)

    def apply(self, version: int, settings: Mapping[str, QueueSettings]) -> list[Change]:
        """Let these settings hold, and tell the listeners what has changed.

        What cannot be used, as another version of the code may have stored it, is logged once, and
        the table holds in its place.
        """
        with self._lock:
            before = self._state.settings
            known = {name: dict(settings.get(name, {})) for name in self._table}
            queues = {name: self._checked(name, ones) for name, ones in known.items()}
            self._state = _State(version, known, queues)
            changes = [
                Change(name, fields)
                for name, ones in known.items()
                if (fields := _differing(before.get(name, {}), ones))
            ]
        for change in changes:
            for listener in tuple(self.listeners):
                listener(change)
        return changes

    def _checked(self, name: str, settings: QueueSettings) -> LiveQueue:
        table = self._table[name]
        if not settings:
            return table
        try:
            return with_values(name, table, {key: one.value for key, one in settings.items()})
        except SettingRefused as error:
            if self._refused.get(name) != settings:
                self._refused[name] = settings
                logger.warning(
                    "the settings of queue %r cannot be used here, so the table holds: %s",
                    name,
                    error,
                    extra={"event": "settings_unusable", "queue": name},
                )
            return table


def _differing(before: QueueSettings, now: QueueSettings) -> frozenset[str]:
    return frozenset(key for key in {*before, *now} if before.get(key) != now.get(key))


_DEFAULTS = LiveQueue()
