"""The queue table: which queues there are, what bounds them, and which task goes where.

One TOML file (or an equal mapping), read into frozen models. Whatever cannot be used is refused
with every problem on a line of its own, each naming the queue or route, the field, what was
expected and what was got; nothing is clamped or guessed. Only what two fields of one queue say
together is looked at when each of them is right. Everybody reads this table; nobody changes it
after ``Topology.load``.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from routing.errors import TopologyError, UnknownLevel
from routing.topology.limits import Limit, limit_for, limit_name_problems, limits_text
from routing.topology.names import name_problem
from routing.topology.problems import close_to, problem_lines
from routing.topology.queue import STRICT, QueueConfig

#: The levels that have a meaning by convention; a route may name others.
LEVELS = ("critical", "high", "normal", "low")

#: The level that a route's plain queue serves when the route does not name another for it.
NORMAL = "normal"


class Route(BaseModel):
    """Which queue each priority level of a task uses.

    Written flat in the table: ``{ queue = "ingest", low = "bulk", high = "realtime" }``, or as the
    name of the one queue.
    """

    model_config = STRICT

    queue: str = Field(
        description="The queue of a call that names no level, and of level 'normal'."
    )
    levels: dict[str, str] = Field(
        default_factory=dict,
        description="Level name to queue. Default none: the task has no other level than 'normal'.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_flat_form(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"queue": data}
        if not isinstance(data, Mapping) or isinstance(data.get("levels"), Mapping):
            return data
        levels = {level: queue for level, queue in data.items() if level != "queue"}
        return {key: data[key] for key in ("queue",) if key in data} | {"levels": levels}

    @model_validator(mode="after")
    def _levels_have_names(self) -> Route:
        for level in self.levels:
            if not level.isidentifier():
                raise ValueError(f"a level needs a name made of letters and digits, got {level!r}")
            if level not in LEVELS and (meant := close_to(level, LEVELS, cutoff=0.8)):
                raise ValueError(f"unknown level {level!r}, did you mean {meant!r}?")
        return self

    def queue_for(self, level: str | None = None) -> str:
        """Return the queue that serves a level.

        Raises:
            UnknownLevel: this route has no such level; the message lists those it has.
        """
        if level is None:
            return self.queue
        if level in self.levels:
            return self.levels[level]
        if level == NORMAL:
            return self.queue
        known, meant = ", ".join(map(repr, self.level_names())), close_to(level, self.level_names())
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise UnknownLevel(f"no queue for level {level!r}: its route has {known}{hint}")

    def level_names(self) -> list[str]:
        """Return the levels that this route serves."""
        return list(dict.fromkeys([NORMAL, *self.levels]))

    def queues(self) -> list[str]:
        """Return every queue that some level of this route reaches."""
        return list(dict.fromkeys([self.queue, *self.levels.values()]))


class Topology(BaseModel):
    """The whole queue table; ``name in topology`` says whether a queue is in it."""

    model_config = STRICT

    queues: dict[str, QueueConfig] = Field(
        description="Queue name to its configuration, in the order of the table.",
    )
    routes: dict[str, Route] = Field(
        default_factory=dict,
        description="Task name, or a glob such as 'tasks.sensors.*', to its route. An exact "
        "name wins over globs, and an earlier glob over a later one. Default "
        "none: all tasks use default_queue.",
    )
    limits: dict[str, Limit] = Field(
        default_factory=dict,
        description="Task name, or a glob, to how much of its work may run in all workers "
        "together: a concurrency, a rate, or both, for each value of a key where one is named. "
        "What is over it waits in the broker. Default none.",
    )
    default_queue: str | None = Field(
        None,
        description="The queue of tasks that no route matches. Default: the first queue of "
        "the table.",
    )
    lease_seconds: Annotated[float, Field(ge=3)] = Field(
        60.0,
        description="Seconds after which the messages of a worker that has stopped renewing "
        "are given to others. Default 60: three renewals, 20 s apart, so that "
        "two lost ones cost nothing. At least 3, as a renewal takes up to a "
        "second.",
    )

    max_inflight_bytes: Annotated[int, Field(ge=1)] = Field(
        64 * 1024**2,
        description="Bytes of unfinished messages at which a worker stops fetching. Default "
        "64 MiB: a thousand times more than short tasks need, and it keeps large messages from "
        "exhausting a worker that fetches them by count. Half of it is divided among the "
        "queues, so that none of them keeps another from being fetched; of each, one message more "
        "may arrive.",
    )

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Mapping[str, Any] | Topology) -> Topology:
        """Return the table in a TOML file or a mapping; a Topology is returned as it is.

        Raises:
            TopologyError: the file cannot be read, or the table cannot be used; every problem has
                a line.
        """
        if isinstance(source, Topology):
            return source
        if isinstance(source, Mapping):
            return cls._read(source, origin="the queue table")
        if not isinstance(source, (str, os.PathLike)):
            raise TopologyError(
                "the queue table must be a path, a mapping or a Topology, "
                f"got {type(source).__name__}"
            )
        return cls._read(_parse(Path(source)), origin=os.fspath(source))

    @classmethod
    def _read(cls, data: Mapping[str, Any], *, origin: str) -> Topology:
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            lines = problem_lines(error, fields=_FIELDS)
            if isinstance(data.get("queues"), Mapping):
                lines += _names_of(data)._name_problems()
            told = "\n".join(dict.fromkeys(lines))
            raise TopologyError(f"{origin} cannot be used:\n{told}") from None

    @model_validator(mode="before")
    @classmethod
    def _first_queue_is_default(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        queues = data.get("queues")
        if data.get("default_queue") is None and isinstance(queues, Mapping) and queues:
            return {**data, "default_queue": next(iter(queues))}
        return data

    @model_validator(mode="after")
    def _names_fit_together(self) -> Topology:
        if problems := list(self._name_problems()):
            raise ValueError("\n".join(problems))
        return self

    def _name_problems(self) -> Iterator[str]:
        if not self.queues:
            yield "queues must name at least one queue, got none"
        for name in self.queues:
            if reason := name_problem(name):
                yield f"queue {name!r}: {reason}"
        if self.queues and self.default_queue not in self.queues:
            got = self._unknown(self.default_queue)
            yield f"default_queue must be a queue of the table, got {got}"
        for name in self.limits:
            yield from limit_name_problems(name)
        for pattern, route in self.routes.items():
            if route.queue not in self.queues:
                yield self._unknown_in_route(pattern, "queue", route.queue)
            for level, queue in route.levels.items():
                if queue not in self.queues:
                    yield self._unknown_in_route(pattern, level, queue)

    def _unknown_in_route(self, pattern: str, field: str, queue: str) -> str:
        return (
            f"route {pattern!r}: {field} must be a queue of the table, got {self._unknown(queue)}"
        )

    def _unknown(self, queue: str | None) -> str:
        meant = close_to(queue or "", self.queues)
        return f"{queue!r}" + (f", did you mean {meant!r}?" if meant else "")

    def __contains__(self, queue: object) -> bool:
        return queue in self.queues

    def queue(self, name: str) -> QueueConfig:
        """Return the configuration of a queue; the defaults for one that is not in the table."""
        return self.queues.get(name, _DEFAULTS)

    def level_names(self) -> list[str]:
        """Return the levels that have a meaning by convention, and those of any route."""
        named = (level for route in self.routes.values() for level in route.levels)
        return list(dict.fromkeys([*LEVELS, *named]))

    @cached_property
    def limits_text(self) -> str:
        """What a fetch says of the limits."""
        return limits_text(self.limits)

    def limit_for(self, task_name: str) -> tuple[str, Limit] | None:
        """Return the limit of a task with its name, None for none."""
        name = limit_for(task_name, self.limits)
        return None if name is None else (name, self.limits[name])

    def route(self, task_name: str) -> Route | None:
        """Return the route of a task: its own, else the first glob that matches, else None."""
        if route := self.routes.get(task_name):
            return route
        for pattern, route in self.routes.items():
            if fnmatch.fnmatchcase(task_name, pattern):
                return route
        return None


_DEFAULTS = QueueConfig()
_FIELDS = {
    "queues": list(QueueConfig.model_fields),
    "routes": ["queue", *LEVELS],
    "limits": list(Limit.model_fields),
    "": list(Topology.model_fields),
}


def _names_of(data: Mapping[str, Any]) -> Topology:
    """Return the names of a table that cannot be used, with those routes that can be read."""
    queues, routes, limits = (_texts(data.get(name)) for name in ("queues", "routes", "limits"))
    default = data.get("default_queue")
    return Topology.model_construct(
        queues=dict.fromkeys(queues, _DEFAULTS),
        routes={pattern: route for pattern, given in routes.items() if (route := _route(given))},
        limits=dict.fromkeys(limits, Limit.model_construct()),
        default_queue=default if isinstance(default, str) else next(iter(queues), None),
    )


def _texts(table: Any) -> dict[str, Any]:
    entries = table.items() if isinstance(table, Mapping) else ()
    return {name: entry for name, entry in entries if isinstance(name, str)}


def _route(given: Any) -> Route | None:
    try:
        return Route.model_validate(given)
    except ValidationError:
        return None


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise TopologyError(
            f"no queue table at {str(path)!r} (looked from {os.getcwd()!r}): correct the path"
        ) from None
    except OSError as error:
        raise TopologyError(
            f"queue table {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TopologyError(f"queue table {str(path)!r} is not TOML: {error}") from error
