"""When a worker calls the broker and how much it asks for: pure decisions.

Prefetch is the most unfinished messages that a worker may hold from a queue. How much of it is
asked for at once is decided here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: Endings wait this long for company before a call carries them. Bounds the delay of an ack and
#: lets a call settle what a few milliseconds of short tasks ended (one call for each would cost
#: more than the tasks).
SETTLE_SECONDS = 0.005

#: That many endings leave at once.
SETTLE_COUNT = 50

#: Most messages asked of one queue in one call: a reply of this size is delivered within one
#: prefetch of ordinary work, and keeps the server's script short.
ASK_AT_MOST = 1000


class Room(NamedTuple):
    """A queue's credit now, and its prefetch."""

    queue: str
    credit: int
    prefetch: int
    #: Bytes of this queue that may still be fetched.
    size_bytes: int = 0

    @property
    def ask(self) -> int:
        """Number of messages to ask for."""
        return max(0, min(self.credit, ASK_AT_MOST))

    @property
    def is_worth_a_call(self) -> bool:
        """Whether half of the prefetch is free: one message costs a call as much as many do."""
        return self.credit * 2 >= self.prefetch


def byte_rooms(held: Mapping[str, int], queues: Sequence[str], *, total: int) -> dict[str, int]:
    """Return how many bytes may be fetched from each queue before something has to end.

    Half of the total is anybody's, the other half is divided among the queues: however much one of
    them holds, the others can go on.

    Arguments:
        held: bytes of unfinished messages, by queue.
        queues: the queues that are consumed.
        total: most bytes that all of them may hold.

    >>> byte_rooms({"bulk": 90}, ["bulk", "urgent"], total=100)
    {'bulk': 0, 'urgent': 25}
    >>> byte_rooms({}, ["bulk", "urgent"], total=100)
    {'bulk': 75, 'urgent': 75}
    """
    floor = max(1, total // (2 * max(1, len(queues))))
    rooms = dict.fromkeys(queues, floor)
    shared = total - floor * len(rooms)
    for queue, size_bytes in held.items():
        left = rooms.get(queue, 0) - size_bytes
        if left < 0:
            shared, left = shared + left, 0
        if queue in rooms:
            rooms[queue] = left
    if shared > 0:
        for queue in rooms:
            rooms[queue] += shared
    return rooms


def should_call(
    rooms: Iterable[Room], *, endings: int, ending_age: float, since_last_call: float
) -> bool:
    """Return whether to settle and fetch now rather than to wait for more to carry.

    Arguments:
        rooms: the credit of each consumed queue.
        endings: number of endings that wait.
        ending_age: seconds that the oldest of them has waited.
        since_last_call: seconds since the last call's reply.
    """
    if endings >= SETTLE_COUNT or (endings and ending_age >= SETTLE_SECONDS):
        return True
    open_rooms = [room for room in rooms if room.credit > 0]
    if any(room.is_worth_a_call for room in open_rooms):
        return True
    return bool(open_rooms) and since_last_call >= SETTLE_SECONDS


def endings_to_call(rooms: Iterable[Room], *, endings: int) -> int:
    """Return how many more messages have to end before `should_call` may say so for their sake.

    Arguments:
        rooms: the credit of each queue that may have something.
        endings: number of endings that wait.

    >>> endings_to_call([Room("q", 2, 10, 1_000)], endings=2)
    3
    """
    # A queue without room in bytes has some as soon as anything ends, however much.
    needed = ((room.prefetch + 1) // 2 - room.credit if room.size_bytes else 0 for room in rooms)
    return max(0, min([SETTLE_COUNT - endings, *needed]))
