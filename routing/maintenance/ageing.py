"""Drops dead letters that are too old, or too many since a bound was lowered."""

from __future__ import annotations

from typing import Any

from routing.transport.channel import EngineMixin
from routing.transport.runtime import topology_of


class AgeDeadLetters:
    """The upkeep job of one worker; letters that come make room for themselves.

    Arguments:
        consumer: the worker's consumer.
    """

    interval_seconds = 60.0

    def __init__(self, consumer: Any) -> None:
        table = topology_of(consumer.app)
        self._queues = list(table.queues) if table else []

    def run(self, channel: EngineMixin) -> None:
        """Trim the dead letters of every queue of the table."""
        for queue in self._queues:
            channel.commands.bury(channel.plain_client, queue, [])
