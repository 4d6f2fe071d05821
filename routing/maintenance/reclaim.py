"""Takes the messages of workers that have gone, so that others run them: a job of the runner.

A lease that nobody renews runs out. Every worker looks for such leases now and then, and any of
them returns the messages to the front of their queues.
"""

from __future__ import annotations

import logging
from typing import Any

from routing.transport.channel import EngineMixin
from routing.transport.runtime import topology_of

logger = logging.getLogger(__name__)

#: Most seconds between two looks: what a message waits for on top of its lease.
LOOK_SECONDS = 2.0


class Reclaim:
    """Looks for leases that ran out.

    Arguments:
        consumer: the worker's consumer.
    """

    def __init__(self, consumer: Any) -> None:
        table = topology_of(consumer.app)
        assert table is not None
        # Twice as often as a renewal is due: a gap between looks means that the broker was away.
        self.interval_seconds = min(LOOK_SECONDS, table.lease_seconds / 6)

    def run(self, channel: EngineMixin) -> None:
        """Take what has run out, newest first, until there is no more."""
        taken = 0
        while (count := channel.commands.reclaim(channel.plain_client)) > 0:
            taken += count
        if taken:
            logger.warning(
                "messages taken over, as their worker has stopped renewing their leases: %d",
                taken,
                extra={"event": "reclaimed", "count": taken},
            )
