"""What a worker sends to the broker next, and how much it asks for: pure decisions.

How many messages of a queue may be asked for is given: prefetch caps it, and a worker's slots say
what they can start soon. When to ask is decided here, and nowhere else: exchange endings for
messages, listen for a bell, or rest until more has ended. Queues that had nothing at the last look,
and have been quiet since, are not asked again before their bell is heard; all are once a second, as
stock producers ring nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

#: Endings wait this long for company before a call carries them. Bounds the delay of an ack and
#: lets a call settle what a few milliseconds of short tasks ended (one call for each would cost
#: more than the tasks).
SETTLE_SECONDS = 0.005

#: An ending that has just come takes an exchange with it, which looks at every queue: listening for
#: a bell in between would cost three more round trips to be woken from it. Not for longer: what
#: comes to an empty queue meanwhile is not heard.
BUSY_SECONDS = SETTLE_SECONDS

#: Where endings are further apart, a worker listens for what is quiet until the next one, though it
#: takes three round trips to be woken from that: what comes meanwhile is there when the next slot
#: is free. Where they are closer, an exchange looks at every queue often enough.
APART_SECONDS = 0.002

#: Seconds after which every queue is asked, whether its bell was heard or not: the worst delay for
#: messages of producers that ring nothing (stock Celery), and for a bell that was lost.
LOOK_SECONDS = 1.0

#: Seconds that a worker waits for a bell: a server that has nothing else to do ends the wait up to
#: a tenth of a second later.
LISTEN_SECONDS = LOOK_SECONDS - 0.1

#: That many endings leave at once.
SETTLE_COUNT = 50

#: Most messages asked of one queue in one call: a reply of this size is delivered within one
#: prefetch of ordinary work, and keeps the server's script short.
ASK_AT_MOST = 1000


class Allowance(NamedTuple):
    """A queue's credit now, and the most that it has: its prefetch, or what its slots can start."""

    queue: str
    credit: int
    prefetch: int
    #: Bytes of this queue that may still be fetched.
    size_bytes: int = 0
    #: Messages that take a slot which no other queue can have then; 0 for those that take none.
    per_slot: int = 0

    @property
    def ask(self) -> int:
        """Number of messages to ask for."""
        return max(0, min(self.credit, ASK_AT_MOST))

    @property
    def is_worth_a_call(self) -> bool:
        """Whether half of the most is free: one message costs a call as much as many do."""
        return self.credit * 2 >= self.prefetch


def byte_allowances(
    held: Mapping[str, int], queues: Sequence[str], *, total: int
) -> dict[str, int]:
    """Return how many bytes may be fetched from each queue before something has to end.

    Half of the total is anybody's, the other half is divided among the queues: however much one of
    them holds, the others can go on.

    Arguments:
        held: bytes of unfinished messages, by queue.
        queues: the queues that are consumed.
        total: most bytes that all of them may hold.

    >>> byte_allowances({"bulk": 90}, ["bulk", "urgent"], total=100)
    {'bulk': 0, 'urgent': 25}
    >>> byte_allowances({}, ["bulk", "urgent"], total=100)
    {'bulk': 75, 'urgent': 75}
    """
    floor = max(1, total // (2 * max(1, len(queues))))
    allowances = dict.fromkeys(queues, floor)
    shared = total - floor * len(allowances)
    for queue, size_bytes in held.items():
        left = allowances.get(queue, 0) - size_bytes
        if left < 0:
            shared, left = shared + left, 0
        if queue in allowances:
            allowances[queue] = left
    if shared > 0:
        for queue in allowances:
            allowances[queue] += shared
    return allowances


def should_call(
    allowances: Iterable[Allowance], *, endings: int, ending_age: float, since_last_call: float
) -> bool:
    """Return whether to settle and fetch now rather than to wait for more to carry.

    Arguments:
        allowances: the credit of each consumed queue.
        endings: number of endings that wait.
        ending_age: seconds that the oldest of them has waited.
        since_last_call: seconds since the last call's reply.
    """
    if endings >= SETTLE_COUNT or (endings and ending_age >= SETTLE_SECONDS):
        return True
    open_ones = [one for one in allowances if one.credit > 0]
    if any(one.is_worth_a_call for one in open_ones):
        return True
    return bool(open_ones) and since_last_call >= SETTLE_SECONDS


def endings_to_call(allowances: Iterable[Allowance], *, endings: int) -> int:
    """Return how many more messages have to end before `should_call` may say so for their sake.

    Arguments:
        allowances: the credit of each queue that may have something.
        endings: number of endings that wait.

    >>> endings_to_call([Allowance("q", 2, 10, 1_000)], endings=2)
    3
    """
    # A queue without room in bytes has some as soon as anything ends, however much.
    needed = ((one.prefetch + 1) // 2 - one.credit if one.size_bytes else 0 for one in allowances)
    return max(0, min([SETTLE_COUNT - endings, *needed]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a fetcher knows while none of its commands is out.

    Attributes:
        allowances: what may be fetched of each queue that is consumed with acknowledgement.
        quiet: queues that had nothing at the last look and whose bells were not heard since.
        endings: number of endings that wait and may be carried now.
        ending_age: seconds that the oldest of them has waited.
        since_reply: seconds since the last reply to an exchange.
        since_look: seconds since all queues were asked.
        since_ending: seconds since anything has ended.
        ending_interval: seconds from one ending to the next, lately.
        has_loop: whether an event loop wakes the fetcher again when something ends.
        hears_others: whether the connection also listens for queues without acknowledgement.
    """

    allowances: Sequence[Allowance]
    quiet: frozenset[str] = frozenset()
    endings: int = 0
    ending_age: float = 0.0
    since_reply: float = 0.0
    since_look: float = 0.0
    since_ending: float = 0.0
    ending_interval: float = 0.0
    has_loop: bool = True
    hears_others: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """Settle, and ask these queues; the bells of the quiet ones are only looked at."""

    asked: tuple[Allowance, ...]
    quiet: tuple[str, ...]
    looks_at_all: bool


@dataclass(frozen=True, slots=True)
class Listen:
    """Wait for a bell of one of these queues."""

    queues: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Send nothing: another look finds the same before so much time, or so many endings.

    `looks_again` tells whether somebody must look again by then, though nothing ends.
    """

    seconds: float
    endings: int
    looks_again: bool


Step: TypeAlias = Exchange | Listen | Rest


def next_step(now: Situation) -> Step:
    """Return what to send next."""
    open_ones = [one for one in now.allowances if one.credit > 0]
    looks_at_all = now.since_look >= LISTEN_SECONDS
    asked = [one for one in open_ones if looks_at_all or one.queue not in now.quiet]
    if _calls(asked, now):
        # Those without room, too: whose turn it is depends on who has something.
        others = (one.queue for one in now.allowances if one.size_bytes and one not in asked)
        return Exchange(tuple(asked), tuple(now.quiet.intersection(others)), looks_at_all)
    if now.has_loop and _rests(open_ones, asked, now):
        age = max(now.since_reply, now.ending_age)
        allowances = [one for one in now.allowances if one.queue not in now.quiet]
        needed = endings_to_call(allowances, endings=now.endings)
        looks_again = bool(asked or now.endings or now.since_ending < BUSY_SECONDS)
        return Rest(max(0.0, SETTLE_SECONDS - age), needed, looks_again)
    # Not for longer than to the next look at all of them.
    left = max(0.01, LISTEN_SECONDS - now.since_look)
    seconds = min(LISTEN_SECONDS, left) if open_ones else LISTEN_SECONDS
    return Listen(tuple(one.queue for one in open_ones if one not in asked), seconds)


def _calls(asked: Sequence[Allowance], now: Situation) -> bool:
    if not now.has_loop:
        return bool(asked or now.endings)
    return should_call(
        asked, endings=now.endings, ending_age=now.ending_age, since_last_call=now.since_reply
    )


def _rests(open_ones: Sequence[Allowance], asked: Sequence[Allowance], now: Situation) -> bool:
    if now.ending_interval >= APART_SECONDS and len(asked) < len(open_ones):
        return False
    is_busy = now.since_ending < BUSY_SECONDS and len(open_ones) < len(now.allowances)
    is_deaf = not open_ones and not now.hears_others
    return bool(asked) or is_deaf or is_busy
