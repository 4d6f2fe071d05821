"""What the ledger says of every queue at the end of a run, as ``celery queues`` shows it."""

from __future__ import annotations

import time

import celery

from routing.redis.ledger import Ledger, read

#: Endings reach the broker within milliseconds of their results; a busy machine takes longer.
SETTLE_SECONDS = 5.0
POLL_SECONDS = 0.02


def settled_ledger(app: celery.Celery) -> Ledger:
    """The ledger once no worker holds anything, or as it is after some seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        while True:
            ledger = read(channel.plain_client, channel.commands)
            if not any(queue.unacked for queue in ledger.queues) or time.monotonic() > deadline:
                return ledger
            time.sleep(POLL_SECONDS)
