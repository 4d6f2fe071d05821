"""The values that holdings are kept in: what is held, how it ended, what is on its way."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol

#: Bytes that one fetch may bring: enough for thousands of ordinary messages, and it keeps a reply
#: of 1 MB messages from stalling the server, the wire and the worker's loop.
FETCH_BYTES = 8 * 1024 * 1024


class State(IntEnum):
    """How far a held message has come."""

    WAITING = 0  #: in the inbox, the dispatcher, a batch buffer or a rate limit's bucket
    SCHEDULED = 1  #: waits for its ETA; does not count against the credit
    HANDED = 2  #: given to the pool, so it will run, and end, whatever becomes of the connection
    STARTED = 3  #: running


class Mark(StrEnum):
    """What is noted on a message that goes back to its queue."""

    NONE = ""  #: nobody may have begun it
    REDELIVERED = "redelivered"  #: it may have run in part: it was handed over
    CHARGED = "charged"  #: the same, and it counts as a delivery that took a process down
    LATER = "later"  #: it cannot be run now: it comes again after a delay that doubles each time


#: Seconds until a message comes again that was given back later, at most.
LONGEST_RETURN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Return:
    """A held message that goes back to the front of its queue; the evidence says why charged."""

    tag: str
    message_id: str = ""
    mark: Mark = Mark.NONE
    evidence: str = ""
    order: int = -1


@dataclass(frozen=True, slots=True)
class Charges:
    """How often a message took a process down, and how it did the last time."""

    count: int = 0
    evidence: str = ""


UNCHARGED = Charges()


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
    charges: Charges = UNCHARGED
    #: When it was pushed, by the server's clock in milliseconds; 0 when that is not known.
    at_ms: int = 0
    #: How often it was given back because it could not be run then.
    returned: int = 0
    #: Set while a worker owns the message: tells when nobody could end it any more.
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How one held message ended; the id is there when its deliveries were counted."""

    queue: str
    name: str
    tag: str
    counted_id: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """Endings on their way to the server."""

    endings: list[Ending]

    def groups(self) -> dict[tuple[str, str], list[str]]:
        """Return the tags of each (queue, ending)."""
        groups: dict[tuple[str, str], list[str]] = {}
        for ending in self.endings:
            groups.setdefault((ending.queue, ending.name), []).append(ending.tag)
        return groups

    def counted_ids(self) -> list[str]:
        """Return the message ids whose delivery count is over."""
        return [ending.counted_id for ending in self.endings if ending.counted_id]


@dataclass(frozen=True, slots=True)
class Burial:
    """A held message on its way to the dead letters of its queue.

    `evidence` is JSON without its opening brace; `text` is kept in the place of the held message,
    which is none.
    """

    tag: str
    message_id: str
    evidence: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch whose reply has not been read: its tag prefix and what was asked of each queue.

    `rooms` has the most bytes of each queue; without them the bound of a fetch holds for each.
    `most_queues` is from how many queues messages are taken.
    """

    prefix: str
    asked: tuple[tuple[str, int], ...]
    rooms: tuple[int, ...] = ()
    most_queues: int = 1_000_000

    def tags(self, position: int) -> list[str]:
        """Return every tag that messages of the queue at this position may have got."""
        return [f"{self.prefix}{position + 1}:{n + 1}" for n in range(self.asked[position][1])]


class Keeper(Protocol):
    """What renews the leases of held messages."""

    #: Name of the worker, or of the process.
    hostname: str

    def follow(self, channel: Any, hostname: str) -> None:
        """Renew at the broker of this channel, in the name of this worker."""

    #: Whether it has said goodbye: nothing that runs is charged any more.
    leaving: bool

    def started(self, tag: str) -> None:
        """Note that a message's run begins; called from any thread, and often."""

    def leave(self) -> None:
        """Tell the broker at once that this worker stops; called in a signal handler too."""

    def check_now(self) -> None:
        """Find out at once what is still held; nothing may start before that is known."""

    def stop(self) -> None:
        """End soon."""
