"""Which queue a message goes to: the one routing function of every way to send a task.

``delay``, ``apply_async``, ``send_task``, canvas, beat, retries and bulk calls all end in
``Celery.send_task``, which asks ``app.amqp.router``. So a level means the same everywhere, and two
producers cannot route differently. `decide_queue` is pure; `Router` asks it and lets Celery do the
rest.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery.app import routes
from celery.exceptions import QueueNotFound
from kombu.transport.virtual.exchange import TopicExchange

from routing.errors import UnknownLevel
from routing.topology.model import NORMAL, Route, Topology
from routing.topology.problems import close_to

logger = logging.getLogger(__name__)

_LOW = "low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where a message goes.

    Attributes:
        queue: the queue's name; None when the table leaves it to the caller's options or to Celery.
        options: the caller's options without what only routing understands.
    """

    queue: str | None
    options: dict[str, Any]


def decide_queue(
    task_name: str,
    options: Mapping[str, Any],
    *,
    route: Route | None,
    defaults: Mapping[str, Any] | None = None,
) -> Decision:
    """Decide which queue a call of a task goes to.

    Arguments:
        task_name: the task's name, for messages.
        options: the options of the call, merged over those of the task; they are not changed.
        route: what the queue table says about this task.
        defaults: the task's own options (``queue``, ``priority``), which a call's level overrides.

    Raises:
        UnknownLevel: the level is not served, or two different levels are asked for.
    """
    defaults = defaults or {}
    level = _level(task_name, options, default_priority=defaults.get("priority"))
    cleaned = {key: value for key, value in options.items() if key != "low_priority"}
    if isinstance(cleaned.get("priority"), str):
        del cleaned["priority"]
    if _is_addressed(cleaned, level=level, default_queue=defaults.get("queue")):
        return Decision(queue=None, options=cleaned)
    if route is None:
        if level not in (None, NORMAL):
            raise UnknownLevel(
                f"task {task_name!r}: no queue for level {level!r}, as the queue table has no "
                f'route for the task; add one to [routes], as "{task_name}" = '
                f'{{ queue = "...", {level} = "..." }}'
            )
        return Decision(queue=None, options=cleaned)
    try:
        queue = route.queue_for(level)
    except UnknownLevel as error:
        raise UnknownLevel(f"task {task_name!r}: {error}") from None
    return Decision(queue=queue, options={k: v for k, v in cleaned.items() if k != "queue"})


def _level(task_name: str, options: Mapping[str, Any], *, default_priority: object) -> str | None:
    priority = options.get("priority")
    named = priority if isinstance(priority, str) else None
    if not options.get("low_priority"):
        return named
    if named not in (None, _LOW) and named != default_priority:
        raise UnknownLevel(
            f"task {task_name!r}: low_priority=True and priority={named!r} ask for two levels, "
            "use one of them"
        )
    return _LOW


def _is_addressed(options: Mapping[str, Any], *, level: str | None, default_queue: object) -> bool:
    """Whether the options say themselves where the message goes."""
    if options.get("exchange"):
        return True
    queue = options.get("queue")
    if not queue:
        return False
    # A queue that the task's class names is a default; a level that the call names is a wish.
    return level is None or queue != default_queue


class Router(routes.Router):
    """Celery's router, which asks the queue table first.

    A task without a route of the table goes where ``task_routes`` says, else to the table's
    default queue.
    """

    def __init__(self, *args: Any, topology: Topology, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.topology = topology
        # Globs are slow to match and names repeat; the bound is for producers that invent names.
        self._route_of = functools.lru_cache(maxsize=4096)(topology.route)

    def route(
        self,
        options: Mapping[str, Any],
        name: str,
        args: Any = (),
        kwargs: Any = None,
        task_type: Any = None,
    ) -> dict[str, Any]:
        """Return the options of a call with its queue; the given ones are not changed.

        Raises:
            UnknownLevel: no queue serves the level that the call asks for.
            QueueNotFound: the call or ``task_routes`` names a queue that does not exist.
        """
        decision = decide_queue(
            name,
            options,
            route=self._route_of(name),
            defaults={key: getattr(task_type, key, None) for key in ("queue", "priority")},
        )
        if decision.queue is not None:
            return {**self.expand_destination(decision.queue), **_given(decision.options)}
        return self._route_without_table(decision.options, name, args, kwargs, task_type)

    def reachable_queues(self, task: Any) -> list[str]:
        """Return every queue that calls of a task go to, unless a call itself names another.

        Asked for a call with the task's own options, and for one of each level that it has.
        """
        names = ("queue", "exchange", "routing_key", "priority")
        own = _given({name: getattr(task, name, None) for name in names})
        route = self._route_of(task.name)
        wishes = [{}, *({"priority": level} for level in route.level_names())] if route else [{}]
        found: dict[str, None] = {}
        for wish in wishes:
            try:
                options = self.route({**own, **wish}, task.name, (), {}, task)
                found |= dict.fromkeys(self._destinations(options))
            except Exception as error:
                # Such a call fails where it is made, or a router of the app's own needs arguments.
                logger.debug("task %r with %r goes nowhere: %s", task.name, wish, error)
        return list(found)

    def _destinations(self, options: Mapping[str, Any]) -> list[str]:
        """Return the queues that a message with these options arrives in."""
        exchange, key = options.get("exchange"), options.get("routing_key")
        if exchange and key:  # else Celery addresses the queue itself
            return [queue.name for queue in self.queues.values() if _takes(queue, exchange, key)]
        return [options["queue"].name]

    def _route_without_table(
        self, options: dict[str, Any], name: str, args: Any, kwargs: Any, task_type: Any
    ) -> dict[str, Any]:
        options = self.expand_destination(options)
        if self.routes:
            found = self.lookup_route(name, args, kwargs or {}, options, task_type)
            if found:
                options = {**self.expand_destination(found), **_given(options)}
        if "queue" not in options:
            options = {**self.expand_destination(self._default_queue()), **_given(options)}
        if isinstance(options.get("priority"), str):
            return dict(decide_queue(name, options, route=None).options)
        return options

    def _default_queue(self) -> str:
        return self.topology.default_queue or str(self.app.conf.task_default_queue)

    def expand_destination(self, route: Any) -> dict[str, Any]:
        """Return routing options with the queue's name replaced by its declaration."""
        given: dict[str, Any] = {"queue": route} if isinstance(route, str) else dict(route)
        name = given.get("queue")
        if isinstance(name, str) and name not in self.queues and self._is_ours_to_know(name):
            given["queue"] = self.queues.new_missing(name)
        try:
            expanded: dict[str, Any] = super().expand_destination(given)
        except QueueNotFound:
            meant = close_to(str(name), self.queues)
            hint = f", did you mean {meant!r}?" if meant else ": add it to the queue table"
            raise QueueNotFound(f"queue {name!r} is not in the queue table{hint}") from None
        return expanded

    def _is_ours_to_know(self, queue: str) -> bool:
        """Whether the running task came from this queue.

        A worker may consume from queues outside the table (``celery control add_consumer``), which
        its pool processes do not know; a retry there must find its queue, or the task would be
        lost.
        """
        task = self.app.current_worker_task
        delivery_info = (task and task.request.delivery_info) or {}
        return bool(delivery_info.get("routing_key") == queue)


def _takes(queue: Any, exchange: Any, routing_key: str) -> bool:
    """Return whether a queue is bound to an exchange, by object or name, with this key."""
    name = getattr(exchange, "name", exchange)
    bindings = [queue, *queue.bindings]
    return any(
        bound.exchange.name == name
        and _matches(bound.exchange.type, bound.routing_key, routing_key)
        for bound in bindings
        if bound.exchange is not None
    )


def _matches(kind: str, bound_key: str, routing_key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "topic":
        pattern = TopicExchange(None).key_to_pattern(bound_key or "")
        return re.match(pattern, routing_key) is not None
    return bound_key == routing_key


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were set: as in Celery, None leaves the word to the route."""
    return {key: value for key, value in options.items() if value is not None}
