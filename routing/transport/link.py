"""One broker database, as this process uses it: what others are given instead of a channel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis

from routing.inflight.holdings import Holdings
from routing.redis.commands import Commands
from routing.redis.faults import ANY_FAULT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The commands of a database, a client that runs them, and what is held from its queues.

    Attributes:
        commands: the engine's commands for this database.
        holdings: what this process holds from it.
        make_client: returns a client that adds no key prefix.
    """

    commands: Commands
    holdings: Holdings
    make_client: Callable[[], redis.Redis]

    @property
    def client(self) -> redis.Redis:
        """A client that adds no key prefix."""
        return self.make_client()

    def tell_starts(self, tags: Sequence[str]) -> None:
        """Tell the broker now that messages begin to run; it learns of others a moment later."""
        keeper = self.holdings.keeper
        if keeper is None or keeper.leaving:
            return
        try:
            self.commands.renew(self.client, keeper.hostname, self.holdings.started(tags))
        except ANY_FAULT as error:
            logger.debug("starts are reported with the next renewal: %s", error)
