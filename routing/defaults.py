"""The settings that `install` gives an app which has not set its own, each with its reason.

They are applied whenever the app's configuration is (re)loaded, so that what the app sets, before
or after ``install``, wins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from routing.publish.amqp import with_table_queues
from routing.topology.model import Topology

logger = logging.getLogger(__name__)

#: setting -> (value, reason)
SAFE: dict[str, tuple[Any, str]] = {
    "task_acks_late": (True, "a worker that dies must not take its tasks along"),
    "task_reject_on_worker_lost": (True, "nor a pool process that is killed"),
    "accept_content": (["json"], "pickle lets whoever can write to the broker run code"),
    "task_serializer": ("json", "pickle lets whoever can write to the broker run code"),
    "result_serializer": ("json", "pickle lets whoever can write to the backend run code"),
    "task_create_missing_queues": (False, "a queue that nobody declared is a typing error"),
    "broker_connection_retry_on_startup": (True, "a worker may start before its broker"),
    "worker_cancel_long_running_tasks_on_connection_loss": (
        False,
        "running work outlives its connection and is acknowledged on the next one",
    ),
}

#: The same, for apps that keep results.
SAFE_WITH_RESULTS: dict[str, tuple[Any, str]] = {
    "worker_deduplicate_successful_tasks": (
        True,
        "what is delivered again after its success was stored need not run again",
    ),
}

#: What we have set, by app: our own values must not look like the app's when they are applied
#: again.
_SET_BY_US: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def apply_defaults(app: Any, conf: Any, topology: Topology) -> None:
    """Apply the table and the safe defaults to an app's loaded configuration.

    What the app has set itself is left alone and logged, once.
    """
    ours = _SET_BY_US.setdefault(app, {})
    for key in [key for key, value in ours.items() if conf.changes.get(key) == value]:
        del conf.changes[key]
    ours.clear()
    left = list(_left_alone(conf))
    own_default = (
        conf.get("task_default_queue") if conf.value_set_for("task_default_queue") else None
    )
    ours.update(
        {key: value for key, (value, _) in _safe(conf).items() if not conf.value_set_for(key)}
    )
    ours["task_queues"] = with_table_queues(conf.get("task_queues"), topology)
    ours["task_default_queue"] = topology.default_queue
    for key, value in ours.items():
        conf[key] = value
    if own_default not in (None, topology.default_queue):
        left.append(
            f"not left alone: task_default_queue = {own_default!r}, as the table's default_queue "
            f"is {topology.default_queue!r}"
        )
    _log_once(app, left)


def _safe(conf: Any) -> dict[str, tuple[Any, str]]:
    return SAFE | SAFE_WITH_RESULTS if conf.get("result_backend") else SAFE


def _left_alone(conf: Mapping[str, Any]) -> Iterator[str]:
    settings: Any = conf
    for key, (value, reason) in _safe(settings).items():
        if settings.value_set_for(key) and not _same(settings.get(key), value):
            yield (
                f"{key} = {settings.get(key)!r}, as the app has set it "
                f"(the default here is {value!r}: {reason})"
            )


def _own_value(conf: Any, key: str) -> Any:
    return conf.get(key) if conf.value_set_for(key) else None


def _same(own: Any, value: Any) -> bool:
    if isinstance(value, list):
        return set(own or ()) <= {*value, "application/json"}
    return bool(own == value)


_LOGGED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def _log_once(app: Any, lines: list[str]) -> None:
    logged = _LOGGED.setdefault(app, set())
    new = [line for line in lines if line not in logged]
    logged.update(new)
    if new:
        logger.info("left alone: %s", "; ".join(new), extra={"event": "settings_left_alone"})
    if any(line.startswith("accept_content") and "pickle" in line for line in new):
        logger.warning(
            "accept_content lets pickle in: whoever can write to the broker can run code in the "
            "workers; drain the pickled backlog, then remove it",
            extra={"event": "pickle_accepted"},
        )
