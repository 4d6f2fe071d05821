"""One bulk call: what is the same for all its messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from celery import signals
from celery.app.task import Task

from routing import upstream
from routing.errors import RoutingError
from routing.transport.runtime import topology_of

#: Positional and keyword arguments of one message.
Arguments = tuple[Sequence[Any], Mapping[str, Any]]

#: Makes arguments of an item; what it raises refuses the item.
Read = Callable[[Any], Arguments]

#: Options of a bulk call that may be functions of the item.
PER_ITEM = ("priority", "low_priority")

#: What the functions of a bulk call say for one item, by their options' names.
Wish = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is the same for all messages of a bulk call.

    Attributes:
        app: the app, which has a queue table.
        name: the task's name.
        task: the task, None when this process does not know it.
        options: the caller's options, as for ``apply_async``; those of `PER_ITEM` may be functions
            of the item.
        read: makes the arguments of one message.
    """

    app: Any
    name: str
    task: Any | None
    options: dict[str, Any]
    read: Read

    def __post_init__(self) -> None:
        if topology_of(self.app) is None:
            raise RoutingError(
                f"app {self.app.main!r} has no queue table: call routing.install(app, ...) first"
            )
        if "task_id" in self.options:
            raise TypeError("task_id is not an option of a bulk call: every item gets its own id")
        soft, hard = (getattr(self.task, f"{kind}time_limit", None) for kind in ("soft_", ""))
        if soft and hard and soft > hard:
            raise ValueError("soft_time_limit must be less than or equal to time_limit")

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The options that are functions of the item."""
        return tuple(name for name in PER_ITEM if callable(self.options.get(name)))

    def wish_of(self, item: Any) -> Wish:
        """Return what an item's own options are; None leaves one to the task.

        Raises:
            TypeError: a function returned what cannot be an option.
        """
        wish = []
        for name in self.varying:
            value = self.options[name](item)
            if not isinstance(value, str | int | None):
                raise TypeError(
                    f"{name} of an item must be the name of a level, a number or None, "
                    f"got {type(value).__name__}"
                )
            wish.append((name, value))
        return tuple(wish)

    def for_items(self, wish: Wish) -> Call:
        """Return the call for those items that have this wish."""
        if not self.varying:
            return self
        same = {name: value for name, value in self.options.items() if name not in self.varying}
        own = {name: value for name, value in wish if value is not None}
        return replace(self, options={**same, **own})

    def check(self) -> None:
        """Raise what sending with these options would raise."""
        options = self.publish_options
        self.app.amqp.router.check(options, options.get("route_name") or self.name, self.task)

    @cached_property
    def is_eager(self) -> bool:
        """Whether the items run here and now."""
        return bool(self.task is not None and self.app.conf.task_always_eager)

    @property
    def is_watched(self) -> bool:
        """Whether somebody wants to see or change each message on its own."""
        return bool(
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or self.app.conf.task_send_sent_event
        )

    @cached_property
    def is_customised(self) -> bool:
        """Whether the task's class makes its messages in a way of its own."""
        kind: Any = type(self.task)
        return self.task is not None and (
            kind.apply_async is not Task.apply_async or kind.shadow_name is not Task.shadow_name
        )

    @cached_property
    def publish_options(self) -> dict[str, Any]:
        """The options that Celery publishes with: the task's, overridden by the call's."""
        own = {k: v for k, v in self.options.items() if k not in ("producer", "connection")}
        own.setdefault("add_to_parent", False)
        if self.task is None:
            return own
        task_options = upstream.EXEC_OPTIONS.of(self.task)()
        return {"ignore_result": self.task.ignore_result, **task_options, **own}

    @cached_property
    def arguments(self) -> Read:
        """Reads an item as ``apply_async`` would take it: checked, and with models dumped."""
        task, read = self.task, self.read
        if task is None or self.is_customised:
            return read
        check = getattr(task, "__header__", None) if task.typing else None
        is_pickled = self.publish_options.get("serializer") == "pickle"
        dump = None if is_pickled else upstream.DUMP_MODELS.of(task)
        if dump is not None:
            return lambda item: dump(*_checked(check, read(item)))
        return (lambda item: _checked(check, read(item))) if check else read


def _checked(check: Callable[..., Any] | None, arguments: Arguments) -> Arguments:
    if check is not None:
        check(*arguments[0], **arguments[1])
    return arguments
