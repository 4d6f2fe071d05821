"""Gives an app its queue table: the only function of the package that changes a Celery app.

::

    app = Celery("shop", broker="redis://localhost:6379/0")
    install(app, "queues.toml")

It may be called before or after the app is configured and its tasks are made. Installing the same
table and policy again changes nothing; others take the place of the first ones for everything that
is published, or started, from then on (a worker that runs keeps the table it was started with).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from celery.app.annotations import prepare
from kombu.utils.imports import symbol_by_name

import routing.doctor.survey
import routing.worker.control  # noqa: F401  (they register the remote-control commands)
from routing import upstream
from routing.defaults import apply_defaults
from routing.flower import show_dead_letters
from routing.publish.amqp import amqp_class, level_policy_of
from routing.publish.groups import extend_canvas
from routing.publish.levels import LevelPolicy, check_policy
from routing.publish.task import TaskAnnotation, missing_attributes
from routing.topology.model import Topology
from routing.transport import runtime
from routing.transport.runtime import topology_of

logger = logging.getLogger(__name__)

__all__ = ["install"]

_NUMBERS = itertools.count(1)

#: Boot steps by their names: a process that is no worker need not import them.
WORKER_STEPS = ("routing.worker.startup:CheckTable",)
CONSUMER_STEPS = (
    "routing.worker.startup:CheckServer",
    "routing.worker.startup:TellPrefetch",
    "routing.worker.dispatcher:Dispatcher",
    "routing.maintenance.runner:Upkeep",
)


def install(
    app: Any,
    topology: str | os.PathLike[str] | Mapping[str, Any] | Topology,
    *,
    level_policy: LevelPolicy | str | None = None,
) -> Topology:
    """Give a Celery app its queue table, and return the table.

    Arguments:
        app: the Celery app.
        topology: the table: a path of a TOML file, a mapping of the same shape, or a `Topology`.
        level_policy: a function, or the ``"module:function"`` of one, that is asked with
            ``(task_name, level, options)`` whenever a call names a level. It returns the level to
            use instead, or None to leave it. Default none: every caller may use every level.

    Raises:
        TopologyError: the table cannot be used; the message has a line for every problem.
        TypeError: the level policy is no function.
        IncompatibleVersion: Celery or kombu lacks what is needed; the message says what.
    """
    upstream.check()
    table = Topology.load(topology)
    check_policy(level_policy)
    if topology_of(app) == table and level_policy_of(app.amqp_cls) == level_policy:
        return table
    _replace_amqp(app, table, level_policy)
    _configure(app)
    _extend_tasks(app)
    _extend_worker(app)
    extend_canvas()
    show_dead_letters()
    return table


def _replace_amqp(app: Any, table: Topology, policy: LevelPolicy | str | None) -> None:
    name = f"{app.main or 'app'}#{next(_NUMBERS)}"
    runtime.create(name, table)
    app.amqp_cls = amqp_class(
        symbol_by_name(app.amqp_cls), topology=table, runtime_name=name, level_policy=policy
    )
    # Both are made on first use and would stay without the table.
    app.__dict__.pop("amqp", None)
    upstream.APP_POOL.put(app, None)


def _configure(app: Any) -> None:
    def on_configured(source: Any, **_: Any) -> None:
        if (table := topology_of(app)) is not None:
            apply_defaults(app, source, table)
            app.annotations = [*prepare(source.task_annotations), TaskAnnotation()]

    _connect(app.on_after_configure, on_configured)
    if app.configured:
        on_configured(app.conf)


def _extend_tasks(app: Any) -> None:
    """Give the methods to all tasks of the app, made or not made yet."""
    _extend(app.Task)
    for task in upstream.APP_TASKS.of(app).values():
        _extend(type(task))
    if app.finalized:
        _warn_of_early_acks(app)


def _extend(kind: Any) -> None:
    for name, value in missing_attributes(kind).items():
        setattr(kind, name, value)


def _warn_of_early_acks(app: Any) -> None:
    """Name the tasks that were bound with early acks: changing them now would rerun their work."""
    if not app.conf.task_acks_late:
        return
    early = sorted(
        name
        for name, task in upstream.APP_TASKS.of(app).items()
        if not task.acks_late and not name.startswith("celery.")
    )
    if early:
        logger.warning(
            "these tasks were made before install and acknowledge early, so a worker that dies "
            "loses them: %s; install the table before the tasks are used, or set acks_late=True on "
            "those that may run twice",
            ", ".join(early),
            extra={"event": "early_acks"},
        )


def _extend_worker(app: Any) -> None:
    app.steps["worker"].update(WORKER_STEPS)
    app.steps["consumer"].update(CONSUMER_STEPS)


def _connect(signal: Any, handler: Callable[..., None]) -> None:
    signal.disconnect(dispatch_uid="celeriac")
    signal.connect(handler, weak=False, dispatch_uid="celeriac")
