"""Changes how queues are worked off, while everything runs.

::

    from routing.settings import queue_settings, reset_queue, set_queue

    set_queue(app, "orders", prefetch=16, weight=4, paused=True)
    reset_queue(app, "orders", "paused")        # one field; without any, all of them
    queue_settings(app)["orders"]["prefetch"]   # value, by, at_ms, before

What is set is kept in the broker, in the place of the table's field, until it is reset: it survives
restarts, and every worker that consumes the queue goes by it within a second. ``celery queues set``
does the same. What can be set, `routing.topology.live.SETTABLE` lists.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from routing.errors import EngineError, SettingRefused
from routing.redis import consumers, settings
from routing.redis.settings import LoggedChange, StoredSettings
from routing.topology.checks import batch_problems, batches_by_queue
from routing.topology.live import (
    SETTABLE,
    LiveTable,
    QueueSettings,
    Setting,
    check_names,
    with_values,
)
from routing.topology.problems import close_to
from routing.topology.queue import LiveQueue
from routing.transport.channel import EngineMixin

__all__ = ["QueueControl", "queue_settings", "reset_queue", "set_queue", "settings_log"]

#: Characters of a name that are kept.
BY_AT_MOST = 200


def set_queue(app: Any, queue: str, *, by: str = "", **values: Any) -> LiveQueue:
    """Set fields of a queue, and return what holds for it now; None resets a field.

    Arguments:
        app: an app with a queue table.
        queue: the queue.
        by: who sets them; by default this user on this host.
        values: field to value, such as ``prefetch=16``, ``rate="50/s"`` or ``paused=True``.

    Raises:
        SettingRefused: a value cannot be used; nothing was stored.
    """
    with _control(app) as control:
        return control.set(queue, values, by=by)


def reset_queue(app: Any, queue: str, *fields: str, by: str = "") -> list[str]:
    """Let the table hold again for fields of a queue, or for all; returns those that were set."""
    with _control(app) as control:
        return control.reset(queue, fields, by=by)


def queue_settings(app: Any) -> dict[str, QueueSettings]:
    """Return what is set, by queue and field, with who has set it, when, and what it was."""
    with _control(app) as control:
        return dict(control.stored().queues)


def settings_log(app: Any) -> list[LoggedChange]:
    """Return the last changes, the newest first; the broker keeps a hundred."""
    with _control(app) as control:
        return control.log()


@contextmanager
def _control(app: Any) -> Iterator[QueueControl]:
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        if not isinstance(channel, EngineMixin):
            raise EngineError(
                f"{connection.as_uri()} is not Redis or Valkey: settings are kept by the engine, "
                "which is off on other brokers"
            )
        yield QueueControl(app, channel)


class QueueControl:
    """The settings of an app's queues.

    Arguments:
        app: the app.
        channel: a channel of the engine to its broker.
    """

    def __init__(self, app: Any, channel: EngineMixin) -> None:
        self._app = app
        self._client, self._keys = channel.plain_client, channel.commands.keys
        self._live = LiveTable(channel.commands.topology)

    def set(self, queue: str, values: Mapping[str, Any], *, by: str = "") -> LiveQueue:
        """Set fields of a queue; see `set_queue`."""
        self._check_name(queue)
        check_names(queue, values)
        return self._change(queue, values, by[:BY_AT_MOST] or _somebody())

    def reset(self, queue: str, fields: Sequence[str] = (), *, by: str = "") -> list[str]:
        """Let the table hold again; see `reset_queue`."""
        _check_type(queue)
        if not (known := self.stored().queues.get(queue, {})):
            self._check_name(queue)  # one that has left the table may have left settings behind
        check_names(queue, (name for name in fields if name not in known))
        names = [name for name in (fields or known) if name in known]
        if names:
            self._change(queue, dict.fromkeys(names), by[:BY_AT_MOST] or _somebody())
        return names

    def stored(self) -> StoredSettings:
        """Return what is set for every queue."""
        return settings.read(self._client, self._keys)

    def log(self) -> list[LoggedChange]:
        """Return the last changes, the newest first."""
        return settings.read_log(self._client, self._keys)

    def live(self) -> LiveTable:
        """Return what holds for every queue now."""
        stored = self.stored()
        self._live.apply(stored.version, stored.queues)
        return self._live

    def _check_name(self, queue: str) -> None:
        _check_type(queue)
        known = self._live.queues
        if queue not in known:
            meant = close_to(queue, known)
            hint = f", did you mean {meant!r}?" if meant else f"; it has {', '.join(known)}"
            raise SettingRefused(f"{queue!r} is no queue of the table{hint}")

    def _change(self, queue: str, values: Mapping[str, Any], by: str) -> LiveQueue:
        table = self._live.of_table(queue)

        def decide(
            stored: QueueSettings, now_ms: int
        ) -> tuple[QueueSettings, Sequence[LoggedChange]]:
            kept, entries = dict(stored), []
            for name, value in values.items():
                one = kept.pop(name, None)
                before = one.value if one is not None else getattr(table, name, None)
                if value is not None:
                    kept[name] = Setting(value=value, by=by, at_ms=now_ms, before=before)
                if value is not None or one is not None:
                    entries.append(
                        LoggedChange(
                            queue=queue,
                            field=name,
                            value=value,
                            before=before,
                            by=by,
                            at_ms=now_ms,
                        )
                    )
            self._check(queue, _holding(queue, table, kept))
            return kept, entries

        kept, _ = settings.change(self._client, self._keys, queue, decide)
        return _holding(queue, table, kept)

    def _check(self, queue: str, meant: LiveQueue) -> None:
        """Refuse what some worker, or some batch task, could not work with."""
        problems: list[str] = []
        if meant.prefetch is not None:
            self._app.loader.import_default_modules()  # a command line has not asked for tasks yet
            sizes = batches_by_queue(self._app).get(queue, {})
            problems += batch_problems(queue, meant.prefetch, sizes)
        if meant.reserve:
            problems += self._reserve_problems(queue, meant.reserve)
        if problems:
            raise SettingRefused("\n".join(problems))

    def _reserve_problems(self, queue: str, reserve: int) -> Iterator[str]:
        queues = self.live().queues
        for one in consumers.read(self._client, self._keys, queues):
            if queue not in one.queues:
                continue
            reserves = {name: queues[name].reserve for name in queues if name in one.queues}
            reserves[queue] = reserve
            if (total := sum(reserves.values())) > one.consumer.slots:
                shares = ", ".join(f"{name} {slots}" for name, slots in reserves.items() if slots)
                yield (
                    f"queue {queue!r}: reserve of all queues must be at most the concurrency of "
                    f"{one.consumer.hostname} ({one.consumer.slots}), got {total} ({shares})"
                )


def _holding(queue: str, table: LiveQueue, stored: QueueSettings) -> LiveQueue:
    """Return what holds with these; what another version has stored is left to that one."""
    values = {name: one.value for name, one in stored.items() if name in SETTABLE}
    return with_values(queue, table, values)


def _check_type(queue: Any) -> None:
    if not isinstance(queue, str):
        raise SettingRefused(f"queue must be the name of a queue of the table, got {queue!r}")


def _somebody() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
