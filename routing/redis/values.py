"""The values that holdings are kept in: what is held, how it ended, what is on its way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

#: Bytes that one fetch may bring: enough for thousands of ordinary messages, and some milliseconds
#: of the server.
FETCH_BYTES = 2 * 1024 * 1024


class Mark(StrEnum):
    """What is noted on a message that is requeued."""

    NONE = ""  #: nobody may have begun it
    REDELIVERED = "redelivered"  #: it may have run in part: it was handed over
    COUNTED = "counted"  #: the same, and it counts as a delivery that killed a process
    LATER = "later"  #: it cannot be run now: it comes again after a delay that doubles each time
    AGAIN = "again"  #: its run failed through no fault of its own: likewise, after a longer one


#: Seconds until a message comes again that was requeued for later, at most.
LONGEST_RETURN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Return:
    """A held message that is requeued at the front; the evidence says why charged."""

    tag: str
    message_id: str = ""
    mark: Mark = Mark.NONE
    evidence: str = ""
    order: int = -1


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How often a message killed a process, and how it did the last time."""

    count: int = 0
    evidence: str = ""


NOT_COUNTED = DeliveryCount()


@dataclass(frozen=True, slots=True)
class Ending:
    """How one held message ended."""

    queue: str
    name: str
    tag: str


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

    def queues(self) -> Counter[str]:
        """Return how many of them are each queue's."""
        return Counter(ending.queue for ending in self.endings)


@dataclass(frozen=True, slots=True)
class Burial:
    """A held message on its way to the dead letters of its queue.

    `evidence` is JSON without its opening brace; `payload` is kept in the place of the held
    message, which is malformed.
    """

    tag: str
    evidence: str
    payload: str = ""


#: Without slots of its own, whoever fetches has place for anything.
ANY_PLACES = 1_000_000


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch whose reply has not been read: its tag prefix and what was asked of each queue.

    `allowances` has the most bytes of each queue; without them the bound of a fetch holds for each.
    `places` is for how many slots work is fetched, and `per_slot` says of each queue how many of
    its messages take one; 0 for those that are over at once, and take none. `quiet` are queues that
    are not asked: the reply says which of them may have something. `gates` says of each asked queue
    what limits it, as `routing.topology.limits` writes it; without them nothing does. `limits` are
    those of tasks and keys, where the table's text does not say which are of batches.
    """

    prefix: str
    asked: tuple[tuple[str, int], ...]
    allowances: tuple[int, ...] = ()
    places: int = ANY_PLACES
    per_slot: tuple[int, ...] = ()
    quiet: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    limits: str = ""

    def tags(self, position: int) -> list[str]:
        """Return every tag that messages of the queue at this position may have got."""
        return [f"{self.prefix}{position + 1}:{n + 1}" for n in range(self.asked[position][1])]


NOTHING = Settlement([])


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: the first `accepted` messages are the queue's, the rest refused.

    `length` is the number of messages that waited before, `limit` the queue's max_length (0 for
    none), `size_bytes` the bytes that waited before, where the queue has max_bytes. `dropped`
    messages were dropped by the queue's policy, of these or of those that waited. `age_ms` is the
    age of the oldest waiting message when messages were refused (0 when it is not known). `drains`
    says that the queue takes no new work, and `pace_ms`, also for refused ones, how long it takes
    from one ending to the next (0 when it is not known); `consumers` is the number of live workers
    that consume the queue, None when nobody asked.
    """

    accepted: int
    length: int
    limit: int
    size_bytes: int = 0
    dropped: int = 0
    age_ms: int = 0
    drains: bool = False
    pace_ms: float = 0.0
    consumers: int | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One fetched message: its tag, its queue and its payload as stored."""

    tag: str
    queue: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The reply to an exchange.

    `server_ms` is the server's clock, `left` the number of messages that each asked queue still
    holds and that may start, `due_ms` when the next delayed message of those queues that have any
    is due by the server's clock, or the next blocked one may start, `heard` the quiet queues that
    may have something.
    """

    server_ms: int
    left: dict[str, int]
    arrivals: list[Arrival]
    due_ms: Mapping[str, int] = field(default_factory=dict)
    heard: Sequence[str] = ()

    def sizes(self) -> Iterator[tuple[str, str, int]]:
        """Yield the tag, the queue and the size in bytes of each arrival."""
        return ((arrival.tag, arrival.queue, len(arrival.payload)) for arrival in self.arrivals)


@dataclass(frozen=True, slots=True)
class Buried:
    """What a burial did: messages that became dead letters, dead letters that made room."""

    buried: int
    trimmed: int
