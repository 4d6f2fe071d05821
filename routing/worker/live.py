"""Lets a worker go by what is set for its queues while it runs.

The settings are read before the worker fetches anything, and come with a thread of the upkeep
later (`routing.maintenance.presence`); they hold in the consumer's loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

from routing.inflight.held import State
from routing.redis.faults import ANY_FAULT
from routing.topology.live import Change, shown
from routing.topology.queue import QueueConfig
from routing.transport.channel import EngineMixin

logger = logging.getLogger(__name__)


class Follows(Protocol):
    """The dispatcher, as settings see it."""

    def share_out(self, queues: Mapping[str, QueueConfig]) -> None:
        """Share the slots by what the queues' entries say from now on."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Run a callback soon in the consumer's loop."""

    def pump(self) -> None:
        """Hand over what may run."""


#: Dispatchers, with the channel that each consumes with, and the queues.
_FOLLOWING: WeakKeyDictionary[Follows, tuple[EngineMixin, Collection[str]]] = WeakKeyDictionary()


def follow_settings(dispatcher: Follows, channel: EngineMixin, queues: Collection[str]) -> None:
    """Share a worker's slots by what holds for its queues now, and whenever that changes."""
    live = channel.runtime.live
    try:
        channel.runtime.refresh(channel.commands, channel.plain_client)
    except ANY_FAULT as error:
        logger.warning(
            "the settings of the queues cannot be read, so the table holds until they can: %s",
            error,
            extra={"event": "settings_unread"},
        )
    dispatcher.share_out(live.queues)
    is_new = dispatcher not in _FOLLOWING
    _FOLLOWING[dispatcher] = channel, queues
    if is_new:
        for queue in queues:
            if given := live.set_for(queue):
                logger.info(
                    "queue %r: %s",
                    queue,
                    ", ".join(f"{name} is set to {value}" for name, value in given.items()),
                    extra={"event": "settings_hold", "queue": queue, "fields": list(given)},
                )
        live.listeners.append(lambda change: dispatcher.soon(partial(_follow, dispatcher, change)))


def _follow(dispatcher: Follows, change: Change) -> None:
    channel, consumed = _FOLLOWING[dispatcher]
    live, holdings = channel.runtime.live, channel.link.holdings
    queue, fields = live.queue(change.queue), sorted(change.fields)
    if change.queue in consumed:
        now = {name: shown(getattr(queue, name, "unknown here")) for name in fields}
        logger.info(
            "queue %r: %s",
            change.queue,
            ", ".join(f"{name} is now {value}" for name, value in now.items()),
            extra={"event": "settings_changed", "queue": change.queue, "fields": fields},
        )
    if channel.closed:
        return  # it shares out anew when it is connected again
    dispatcher.share_out(live.queues)
    if queue.paused:
        # What waits here and in batches is nobody's then, and is left out when its turn comes.
        holdings.requeue_all(up_to=State.WAITING, queue=change.queue)
        channel.settler.flush()
    holdings.settlers.made_room([change.queue])
    dispatcher.pump()
