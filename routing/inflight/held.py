"""One held message: how far it has come, and whether anybody is left who could end it."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from routing.redis.values import LONGEST_RETURN_SECONDS, NOT_COUNTED, DeliveryCount, Mark

logger = logging.getLogger(__name__)


class State(IntEnum):
    """How far a held message has come."""

    WAITING = 0  #: in the inbox, the dispatcher, a batch buffer or a rate limit's bucket
    HANDED = 1  #: given to the pool, so it will run, and end, whatever becomes of the connection
    STARTED = 2  #: running


class Watch(weakref.ref[object]):
    """A weak reference to a message that leaves its tag in a list when the message dies.

    The collector calls it in the middle of anything, so it takes no lock.
    """

    __slots__ = ("_forsaken", "_tag")

    _forsaken: deque[str]
    _tag: str

    def __new__(cls, message: object, forsaken: deque[str], tag: str) -> Watch:
        """Watch a message."""
        watch = super().__new__(cls, message, cls._died)
        watch._forsaken = forsaken
        watch._tag = tag
        return watch

    def __init__(self, message: object, forsaken: deque[str], tag: str) -> None:
        super().__init__(message, type(self)._died)  # type: ignore[call-arg]

    def _died(self) -> None:
        self._forsaken.append(self._tag)


@dataclass(slots=True)
class Held:
    """One held message."""

    tag: str
    queue: str
    order: int
    size_bytes: int = 0
    state: State = State.WAITING
    message_id: str = ""
    delivery_count: DeliveryCount = NOT_COUNTED
    #: Whether it has run, though it may wait again.
    has_run: bool = False
    #: How many messages it runs with, itself included.
    company: int = 1
    #: When it was pushed, by the server's clock in milliseconds; 0 when that is not known.
    at_ms: int = 0
    #: How often it was requeued because it could not be run then.
    returned: int = 0
    #: Whether it waits for the rate of its task.
    is_limited: bool = False
    #: Set while a worker owns the message: tells when nobody could end it any more.
    watch: Watch | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a slot."""
        return not (self.state or self.is_limited)

    @property
    def run(self) -> str:
        """What the broker is told of its run: how many messages that has; nothing before."""
        return str(self.company) if self.state is State.STARTED else ""

    @property
    def mark(self) -> Mark:
        """What is noted when it is requeued: whether it may have run in part."""
        is_new = self.state is State.WAITING and not self.has_run
        return Mark.NONE if is_new else Mark.REDELIVERED

    def say_later(self) -> None:
        """Log that it is requeued and comes again later."""
        seconds = min(LONGEST_RETURN_SECONDS, 2 ** min(self.returned, 6))
        logger.warning(
            "queue %r: message %s is requeued and comes again in %d s (times so far: %d)",
            self.queue,
            self.message_id or self.tag,
            seconds,
            self.returned + 1,
            extra={"event": "given_back_later", "count": self.returned + 1},
        )
