"""Which queue a message goes to: the one routing function of every way to send a task.

``delay``, ``apply_async``, ``send_task``, canvas, beat, retries and bulk calls all end in
``Celery.send_task``, which asks ``app.amqp.router``. So a level means the same everywhere, and two
producers cannot route differently. `decide_queue` decides; `Router` asks it and lets Celery do the
rest.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

from celery.app import routes
from celery.exceptions import QueueNotFound
from kombu.transport.virtual.exchange import TopicExchange

from routing import upstream
from routing.errors import UnknownLevel, UnknownOption
from routing.message.exemption import follows_from_accepted
from routing.publish.decision import Decision, decide_queue
from routing.publish.levels import (
    HIGHEST,
    LEVEL,
    LevelPolicy,
    check_known,
    check_served,
    check_unrouted,
    check_wishes,
    level_of,
    note_downgrade,
)
from routing.publish.options import check_options
from routing.topology.model import Topology
from routing.topology.problems import close_to

logger = logging.getLogger(__name__)


class Router(routes.Router):
    """Celery's router, which asks the queue table first.

    A task without a route of the table goes where ``task_routes`` says, else to the table's
    default queue.
    """

    def __init__(
        self, *args: Any, topology: Topology, policy: LevelPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.topology = topology
        self._policy = policy
        self._levels = tuple(topology.level_names())
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
            UnknownOption: an option is misspelt.
            UnknownLevel: no queue serves the level that the call asks for, or it is none.
            LevelPolicyFailed: the level policy gave no usable answer.
            QueueNotFound: the call or ``task_routes`` names a queue that does not exist.
        """
        name = _mapped(name, kwargs)
        options, level = self._with_inherited(options)
        decision = self._decide(options, name, task_type, inherited=level, policy=self._policy)
        if decision.granted is not None and decision.granted.asked is not None:
            note_downgrade(name, decision.granted)
        return self._destination(decision, name, args, kwargs, task_type)

    def check(self, options: Mapping[str, Any], name: str, task_type: Any = None) -> None:
        """Raise what `route` would raise, without a word of it."""
        decision = self._decide(options, name, task_type, policy=self._policy)
        self._destination(decision, name, (), {}, task_type)

    def check_later(self, options: Mapping[str, Any], name: str) -> None:
        """Raise what would be wrong with the options of a call that a worker is going to make.

        Its table may have queues, and routes of tasks, which are not known here: what a task of
        another app asks for is its own to judge.

        Raises:
            UnknownOption: an option is misspelt.
            UnknownLevel: no queue serves the level, or it is none.
            QueueNotFound: a task of this app is sent to a queue that does not exist.
        """
        check_options(name, options, levels=self._levels)
        check_wishes(name, options, highest=self._highest_number)
        task = upstream.APP_TASKS.of(self.app).get(name)
        is_own = task is not None and not name.startswith("celery.")
        queue = options.get("queue")
        if is_own and isinstance(queue, str):
            self.expand_destination(queue)
        level = level_of(name, options, default_priority=getattr(task, "priority", None))
        if level is None:
            return
        route = self._route_of(name)
        if queue or options.get("exchange") or getattr(task, "exchange", None):
            check_known(name, level, self._levels)
        elif route is not None:
            check_served(name, level, route)
        elif is_own:
            check_unrouted(name, level)
        else:
            check_known(name, level, self._levels)

    def _decide(
        self, options: Mapping[str, Any], name: str, task_type: Any, **more: Any
    ) -> Decision:
        self._check_options(options, name)
        if getattr(task_type, "low_priority", False) and _leaves_the_level(options):
            options = {**options, "low_priority": True}
        return decide_queue(
            name,
            options,
            route=self._route_of(name),
            defaults={key: getattr(task_type, key, None) for key in ("queue", "priority")},
            levels=self._levels,
            **more,
        )

    def _check_options(self, options: Mapping[str, Any], name: str) -> None:
        try:
            check_options(name, options, levels=self._levels)
            check_wishes(name, self._own_wishes(options), highest=self._highest_number)
        except (UnknownOption, UnknownLevel) as error:
            # A task that ran must not fail for how what follows from it was written.
            if not follows_from_accepted():
                raise
            logger.warning("%s It is passed on.", error, extra={"event": "unknown_option"})

    def _own_wishes(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options without the running task's priority, which its retry has too."""
        task = self.app.current_worker_task
        given = ((task and task.request.delivery_info) or {}).get("priority")
        if given is None or options.get("priority") != given:
            return options
        return {**options, "priority": None}

    def _highest_number(self) -> int:
        """Return the highest number that means something: a queue of RabbitMQ may know more."""
        declared = [getattr(self.queues, "max_priority", None)]
        for queue in self.queues.values():
            declared.append(queue.max_priority)
            declared.append((queue.queue_arguments or {}).get("x-max-priority"))
        return max([HIGHEST, *(number for number in declared if isinstance(number, int))])

    def _destination(
        self, decision: Decision, name: str, args: Any, kwargs: Any, task_type: Any
    ) -> dict[str, Any]:
        if decision.queue is not None:
            return {**self.expand_destination(decision.queue), **_given(decision.options)}
        return self._route_without_table(decision.options, name, args, kwargs, task_type)

    def _with_inherited(self, options: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
        """Return the options, and the level, with what ``task_inherit_parent_priority`` adds.

        Celery adds the parent's number when a message has been routed, which is too late for a
        level, and no level is a number.
        """
        parent = self.app.current_worker_task
        if parent is None or not parent.request:
            return options, None
        own = options.get("priority") is not None or options.get("low_priority")
        if own or not self.app.conf.task_inherit_parent_priority:
            return options, None
        number = (parent.request.delivery_info or {}).get("priority")
        level = (parent.request.headers or {}).get(LEVEL)
        return {**options, "priority": number}, level if isinstance(level, str) else None

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
                decision = self._decide({**own, **wish}, task.name, task)
                options = self._destination(decision, task.name, (), {}, task)
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
        if isinstance(options.get("priority"), str) or "low_priority" in options:
            options = decide_queue(name, options, route=None, levels=self._levels).options
        if "queue" not in options:
            options = {**self.expand_destination(self._default_queue()), **_given(options)}
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
            told = _Plain(f"queue {name!r} is not in the queue table{hint}")
            raise QueueNotFound(told) from None
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


class _Plain(str):
    """A message that a KeyError, as Celery's error is, shows as it is: it shows its repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # who reads a pickled error may not have this package


def _leaves_the_level(options: Mapping[str, Any]) -> bool:
    """Return whether a call leaves its level to the task."""
    return not isinstance(options.get("priority"), str) and "low_priority" not in options


def _mapped(name: str, kwargs: Any) -> str:
    """Return the name of the task that ``map``, ``starmap`` or ``chunks`` calls, else the name.

    Celery names it by ``route_name``, and loses that where they are members of a group.
    """
    if name not in ("celery.map", "celery.starmap") or not isinstance(kwargs, Mapping):
        return name
    called = kwargs.get("task")
    return str(called.get("task", name)) if isinstance(called, Mapping) else name


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
