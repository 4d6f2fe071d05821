"""Which queue a call goes to: the decision itself, apart from Celery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routing.publish.levels import (
    Granted,
    LevelPolicy,
    check_known,
    check_unrouted,
    grant,
    level_of,
    with_level,
)
from routing.topology.model import LEVELS, Route

#: The header of a message that is to run alone where others of its task run in batches: False.
ALONE = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a message goes.

    Attributes:
        queue: the queue's name; None when the table leaves it to the caller's options or to Celery.
        options: the caller's options without what only routing understands; the headers say the
            level.
        granted: the level that decided the queue, None when none did.
    """

    queue: str | None
    options: dict[str, Any]
    granted: Granted | None = None


def decide_queue(
    task_name: str,
    options: Mapping[str, Any],
    *,
    route: Route | None,
    defaults: Mapping[str, Any] | None = None,
    levels: Sequence[str] = LEVELS,
    inherited: str | None = None,
    policy: LevelPolicy | None = None,
) -> Decision:
    """Decide which queue a call of a task goes to.

    Arguments:
        task_name: the task's name, for messages.
        options: the options of the call, merged over those of the task; they are not changed.
        route: what the queue table says about this task.
        defaults: the task's own options (``queue``, ``priority``), which a call's level overrides.
        levels: the names of all levels, of this task or others.
        inherited: the level of the task that makes the call, if calls inherit it. A route that does
            not have it serves the call as one without a level.
        policy: says which level a call may use that names one.

    Raises:
        UnknownLevel: the level is not served, or two different levels are asked for.
        LevelPolicyFailed: the policy gave no usable answer.
    """
    defaults = defaults or {}
    level = level_of(task_name, options, default_priority=defaults.get("priority"))
    cleaned = {k: v for k, v in options.items() if k not in ("low_priority", "batch")}
    if options.get("batch") is False:
        cleaned["headers"] = {**(cleaned.get("headers") or {}), ALONE: False}
    if isinstance(cleaned.get("priority"), str):
        del cleaned["priority"]
    if _is_addressed(cleaned, level=level, default_queue=defaults.get("queue")):
        # Its headers stay: a retry goes back to its queue, with the level that chose it.
        if level is not None:
            check_known(task_name, level, [*levels, *(route.levels if route else ())])
        return Decision(queue=None, options=cleaned)
    if route is None:
        check_unrouted(task_name, level)
        granted = None if inherited is None else Granted(level=inherited)
        return Decision(queue=None, options=_marked(cleaned, granted), granted=granted)
    if level is not None:
        granted = grant(task_name, level, options, route=route, policy=policy)
        queue = route.queue_for(granted.level)
    elif inherited is not None:
        granted = Granted(level=inherited)
        queue = route.queue_for(inherited if inherited in route.level_names() else None)
    else:
        granted, queue = None, route.queue
    kept = {key: value for key, value in cleaned.items() if key != "queue"}
    return Decision(queue=queue, options=_marked(kept, granted), granted=granted)


def _marked(options: dict[str, Any], granted: Granted | None) -> dict[str, Any]:
    headers = with_level(options.get("headers"), granted)
    return options if headers is options.get("headers") else {**options, "headers": headers}


def _is_addressed(options: Mapping[str, Any], *, level: str | None, default_queue: object) -> bool:
    """Whether the options say themselves where the message goes."""
    if options.get("exchange"):
        return True
    queue = options.get("queue")
    if not queue:
        return False
    # A queue that the task's class names is a default; a level that the call names is a wish.
    return level is None or _name(queue) != _name(default_queue)


def _name(queue: Any) -> Any:
    """Return a queue's name, of its declaration too: kombu compares none with anything else."""
    return getattr(queue, "name", queue)
