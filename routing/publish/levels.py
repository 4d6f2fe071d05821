"""Which level a call goes at: what it names, what it inherits, and what it may use.

A level that decided a message's queue travels in its headers, as ``priority_level``: Celery keeps
headers through retries, delays and replays, and a task finds it as
``self.request.headers["priority_level"]``. Where the app's level policy gave another level than the
call named, ``priority_asked`` says which that was.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias

from kombu.utils.imports import symbol_by_name

from routing.errors import LevelPolicyFailed, RoutingError, UnknownLevel
from routing.topology.model import LEVELS, NORMAL, Route
from routing.topology.problems import close_to
from routing.transport.bursts import Bursts

logger = logging.getLogger(__name__)

#: The header with the level that a message goes at.
LEVEL = "priority_level"

#: The header with the level that its call named, where that is another.
ASKED = "priority_asked"

#: The level of a call that names none.
NORMAL_LEVEL = NORMAL

#: The levels that are more urgent than most.
URGENT = frozenset(LEVELS[: LEVELS.index(NORMAL)])

#: Asked with the task's name, the level that a call names and the call's options: returns the level
#: to use instead, or None to leave it.
LevelPolicy: TypeAlias = Callable[[str, str, Mapping[str, Any]], str | None]

_LOW = "low"

#: Celery's highest number, where no queue of the broker is declared with more.
HIGHEST = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The level that a call goes at, and the one that it named, where that is another."""

    level: str
    asked: str | None = None


def level_of(
    task_name: str, options: Mapping[str, Any], *, default_priority: object = None
) -> str | None:
    """Return the level that the options of a call name, None when they name none.

    Arguments:
        task_name: the task's name, for messages.
        options: the options of the call, merged over those of the task.
        default_priority: the task's own ``priority``, which ``low_priority=True`` overrides.

    Raises:
        UnknownLevel: two different levels are asked for, or ``priority`` can be neither a level nor
            a number.
    """
    priority = options.get("priority")
    if priority is not None and not isinstance(priority, str | Real):
        raise _no_priority(task_name, priority, HIGHEST)
    # The plain string of one whose class is derived, such as a StrEnum's member.
    named = str.__str__(priority) if isinstance(priority, str) else None
    if not options.get("low_priority"):
        return named
    if named not in (None, _LOW) and named != default_priority:
        raise UnknownLevel(
            f"task {task_name!r}: low_priority=True and priority={named!r} ask for two levels, "
            "use one of them"
        )
    return _LOW


def check_wishes(
    task_name: str, options: Mapping[str, Any], *, highest: Callable[[], int] = lambda: HIGHEST
) -> None:
    """Refuse a priority, or a wish for a low one, that can mean nothing.

    Arguments:
        task_name: the task's name, for messages.
        options: the options of a call.
        highest: returns the highest number that a queue may know; asked where it is above 9.

    Raises:
        UnknownLevel: the message says what was expected.
    """
    priority, low = options.get("priority"), options.get("low_priority")
    if not (priority is None or isinstance(priority, str) or _is_number(priority, highest)):
        raise _no_priority(task_name, priority, highest())
    if low not in (None, True, False):
        raise UnknownLevel(f"task {task_name!r}: low_priority must be True or False, got {low!r}")


def _is_number(value: Any, highest: Callable[[], int]) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return value in range(HIGHEST + 1) or value in range(HIGHEST + 1, highest() + 1)


def _no_priority(task_name: str, priority: Any, highest: int) -> UnknownLevel:
    return UnknownLevel(
        f"task {task_name!r}: priority must be the name of a level or a number from 0 to "
        f"{highest}, got {priority!r}"
    )


def grant(
    task_name: str,
    level: str,
    options: Mapping[str, Any],
    *,
    route: Route,
    policy: LevelPolicy | None,
) -> Granted:
    """Return the level that a call may use which names this one.

    Raises:
        UnknownLevel: the task's route has no such level, or not the one that the policy returned.
        LevelPolicyFailed: the policy raised, or returned what is no level.
    """
    check_served(task_name, level, route)
    if policy is None:
        return Granted(level=level)
    given = _ask(policy, task_name, level, options)
    if given is None or given == level:
        return Granted(level=level)
    by = f"task {task_name!r}: the level policy {_name(policy)} returned {given!r} for {level!r}"
    if not isinstance(given, str):
        raise LevelPolicyFailed(f"{by}: expected the name of a level, or None to leave it")
    try:
        route.queue_for(given)
    except UnknownLevel as error:
        raise UnknownLevel(f"{by}: {error}") from None
    return Granted(level=str.__str__(given), asked=level)


def check_served(task_name: str, level: str, route: Route) -> None:
    """Refuse a level that a task's route does not have.

    Raises:
        UnknownLevel: the message lists those it has.
    """
    try:
        route.queue_for(level)
    except UnknownLevel as error:
        raise UnknownLevel(f"task {task_name!r}: {error}") from None


def check_known(task_name: str, level: str, levels: Sequence[str]) -> None:
    """Refuse a name that is no level of any task: the call names its queue itself.

    Raises:
        UnknownLevel: the message says what was meant, if that is close.
    """
    if level in levels:
        return
    meant = close_to(level, levels)
    hint = f"did you mean {meant!r}?" if meant else "known are " + ", ".join(map(repr, levels))
    raise UnknownLevel(f"task {task_name!r}: unknown level {level!r}, {hint}")


def check_unrouted(task_name: str, level: str | None) -> None:
    """Refuse the level of a task for which the table has no route.

    Raises:
        UnknownLevel: the message has the line to add.
    """
    if level in (None, NORMAL):
        return
    meant = None if level in LEVELS else close_to(level, LEVELS)
    hint = f" (did you mean {meant!r}?)" if meant else ""
    raise UnknownLevel(
        f"task {task_name!r}: no queue for level {level!r}{hint}, as the queue table has no "
        f'route for the task; add one to [routes], as "{task_name}" = '
        f'{{ queue = "...", {meant or level} = "..." }}'
    )


def with_level(headers: Any, granted: Granted | None) -> Any:
    """Return a call's headers with its level; without one that is copied from another message."""
    marks = (
        {}
        if granted is None
        else {LEVEL: granted.level} | ({ASKED: granted.asked} if granted.asked else {})
    )
    if headers is None:
        return marks or None
    if not isinstance(headers, Mapping) or not (marks or headers.keys() & {LEVEL, ASKED}):
        return headers
    return {k: v for k, v in headers.items() if k not in (LEVEL, ASKED)} | marks


def granted_by(headers: Mapping[str, Any]) -> Granted | None:
    """Return what a message's headers say of its level, where that is not the one it asked for."""
    level, asked = headers.get(LEVEL), headers.get(ASKED)
    return Granted(level=level, asked=asked) if level and asked else None


def check_policy(given: Any) -> None:
    """Refuse what cannot be a level policy; the module of ``"module:function"`` may come later.

    Raises:
        TypeError: it cannot be called.
    """
    if not (given is None or callable(given) or isinstance(given, str)):
        raise TypeError(
            "level_policy must be a function of (task_name, level, options) or the "
            f"'module:function' of one, got {given!r}"
        )


def level_policy(given: LevelPolicy | str | None) -> LevelPolicy | None:
    """Return the policy that is given, itself or as ``"module:function"``.

    Raises:
        LevelPolicyFailed: nothing can be imported by that name, or what cannot be called.
    """
    if not isinstance(given, str):
        return given
    expected = f"level_policy={given!r}: expected the 'module:function' of a function"
    try:
        found: Any = symbol_by_name(given)
    except Exception as error:
        raise LevelPolicyFailed(f"{expected}, which cannot be imported: {error!r}") from error
    if not callable(found):
        raise LevelPolicyFailed(f"{expected}, got {found!r}")
    policy: LevelPolicy = found
    return policy


def _ask(policy: LevelPolicy, task_name: str, level: str, options: Mapping[str, Any]) -> Any:
    try:
        return policy(task_name, level, MappingProxyType(dict(options)))
    except RoutingError:
        raise  # a policy may refuse a call with an error of its choice
    except Exception as error:
        raise LevelPolicyFailed(
            f"task {task_name!r}: the level policy {_name(policy)} raised {error!r} for level "
            f"{level!r}; nothing was published"
        ) from error


def _name(policy: Any) -> str:
    module = getattr(policy, "__module__", type(policy).__module__)
    return f"{module}.{getattr(policy, '__qualname__', type(policy).__qualname__)}"


#: Calls that went at another level than they named, and that no line has told yet.
_DOWNGRADES = Bursts()
atexit.register(_DOWNGRADES.flush)


def note_downgrade(task_name: str, granted: Granted, count: int = 1) -> None:
    """Log that calls went at another level than they named, at most once a second and task."""
    _DOWNGRADES.note(task_name, partial(_say_downgraded, task_name, granted), count)


def _say_downgraded(task_name: str, last: Granted, count: int) -> None:
    logger.warning(
        "task %r: %d call%s went at another level than asked for, as the level policy says; the "
        "last asked for %r and went at %r",
        task_name,
        count,
        "" if count == 1 else "s",
        last.asked,
        last.level,
        extra={
            "event": "level_downgraded",
            "task": task_name,
            "asked": last.asked,
            "level": last.level,
            "count": count,
        },
    )
