"""What is sent when, and what happens meanwhile: pure, the same for the same arguments.

The load is chosen from the fleet: the trickle takes a fixed share of the capacity of the slots that
no queue reserves, whatever the pool. Most tasks are short; how many long ones there are makes up
the mean. Times are seconds from the begin of the run, which opens with urgent calls on an idle
fleet.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from benchmarks.workers import BenchmarkError, Pool

URGENT, PLAIN, BATCHED = QUEUES = ("urgent", "plain", "batched")

#: Slots of each worker. Solo has one, which cannot be reserved.
CONCURRENCY: dict[Pool, int] = {"prefork": 2, "threads": 4, "gevent": 8, "solo": 1}
RESERVED = 1
WORKERS = 2

#: Share of the capacity that the trickle takes.
LOAD = 0.55

#: Messages a second of the trickle; few enough that two shared cores are not what limits them.
RATES = {URGENT: 10.0, PLAIN: 60.0, BATCHED: 140.0}

#: Workers that do everything in one thread take less: what a message costs besides its run time is
#: their slots' time too.
RATE_SHARES: dict[Pool, float] = {"prefork": 1.0, "threads": 1.0, "gevent": 1.0, "solo": 0.5}

#: Bursts are of so many times the trickle, for so long, and come in slices.
BURST_TIMES = 10
BURST_SECONDS = 0.3
BURST_SLICE_SECONDS = 0.1
BURSTS_AT = (0.02, 0.35, 0.7)

#: Urgent calls on the idle fleet, one by one.
IDLE_RATE = 25.0

#: Run times: most are short, some are long.
SHORT_SECONDS = (0.001, 0.015)
LONG_SECONDS = (0.1, 5.0)
URGENT_SECONDS = (0.001, 0.01)

#: Before a worker is ended some of the long ones begin, so that it is ended while they run.
VICTIM_SECONDS = 2.5
VICTIMS = 2
VICTIMS_BEFORE_SECONDS = 0.5

#: Bytes of a message's payload, and which share of the messages has at most the upper ones.
SIZES = ((0.90, 200, 1_000), (0.09, 1_000, 20_000), (0.01, 20_000, 500_000))

#: One call of the batched task takes so long, and so much more for each item.
CALL_SECONDS = 0.03
ITEM_SECONDS = 0.0002
MAX_SIZE = 100

#: Shares of the messages of a queue.
FLAKY_SHARE = 0.01
DOOMED_SHARE = 0.01
SINK_SHARE = 0.1

#: While this file lies in the run's folder the sink is away.
SINK_AWAY = "sink.away"

#: The producer writes when it began into this file.
BEGIN_FILE = "begin"

#: From this length on no process is replaced in the second half, nor while new ones would warm up
#: before it, so that their memory can be judged: it settles in some two minutes of this load.
LONG_RUN_SECONDS = 480.0
WARM_UP_SECONDS = 120.0
ROUND_SECONDS = 75.0
LEAD_SECONDS = 1.5
CALM_SECONDS = 5.0


class Behaviour(IntEnum):
    """What a message makes its task do."""

    HEALTHY = 0
    FLAKY = 1  # fails at first, and is tried again
    DOOMED = 2  # fails for good: the only ones that may
    SINKS = 3  # needs the sink, and is tried again while that is away


class Event(StrEnum):
    """What happens to the platform, by the name that ``--without`` takes."""

    SINK = "sink"
    DEPLOY = "deploy"
    FULL = "full"
    SILENT = "silent"
    POOL = "pool"
    WORKER = "worker"
    SCRIPT = "script"
    BURST = "burst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How an event goes: it lasts, and is healed so much later.

    ``replaces``: it ends processes that others take the place of.
    """

    lasts: float = 0.0
    heals: float
    replaces: bool = False


#: In the order in which they happen. A silent link is noticed after at most five seconds; what a
#: killed worker held is back after a lease and two seconds.
COURSES: dict[Event, tuple[Course, ...]] = {
    Event.SINK: (Course(lasts=2.0, heals=1.5),),
    Event.DEPLOY: (Course(heals=3.0, replaces=True),) * WORKERS,
    Event.FULL: (Course(lasts=2.5, heals=2.0),),
    Event.SILENT: (Course(heals=9.0),),
    Event.POOL: (Course(heals=1.5, replaces=True),),
    Event.WORKER: (Course(heals=8.5, replaces=True),),
    Event.SCRIPT: (Course(lasts=1.5, heals=2.0),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event of the run: which, from when to when, and when it must be healed."""

    event: Event
    at: float
    until: float
    healed_at: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message: when it is sent, where to, and what its task does."""

    number: int
    at: float
    queue: str
    run_seconds: float
    size_bytes: int
    behaviour: Behaviour
    is_burst: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run.

    Arguments:
        pool: the workers' pool.
        seconds: how long the load lasts.
        without: events that do not happen.
    """

    pool: Pool = "prefork"
    seconds: float = 45.0
    without: Collection[Event] = ()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote."""
        given = json.loads(text)
        without = tuple(map(Event, given.pop("without")))
        return cls(**given, without=without)

    def to_json(self) -> str:
        """Return the arguments as text, for another process."""
        without = [event.value for event in self.without]
        return json.dumps({"pool": self.pool, "seconds": self.seconds, "without": without})

    @property
    def slots(self) -> int:
        """Return the slots of the fleet that bulk work may take."""
        size = CONCURRENCY[self.pool]
        return WORKERS * max(size - RESERVED, 1)

    def rate(self, queue: str) -> float:
        """Return the messages a second of the trickle into a queue."""
        return RATES[queue] * RATE_SHARES[self.pool]

    @property
    def mean_run_seconds(self) -> float:
        """Return the mean slot time of one message of the bulk queues, in full batches."""
        return self.slots / self.capacity

    @property
    def capacity(self) -> float:
        """Return the bulk messages a second that the fleet can do."""
        return (self.rate(PLAIN) + self.rate(BATCHED)) / LOAD

    @property
    def plain_run_seconds(self) -> float:
        """Return the mean run time of the plain tasks, so that the load is what it should be."""
        item = CALL_SECONDS / MAX_SIZE + ITEM_SECONDS
        return (LOAD * self.slots - item * self.rate(BATCHED)) / self.rate(PLAIN)

    @property
    def idle_seconds(self) -> float:
        """Return how long urgent calls run on the idle fleet."""
        return min(20.0, max(4.0, self.seconds / 30))

    @property
    def load_ends(self) -> float:
        """Return when the last message is sent."""
        return self.idle_seconds + self.seconds

    @property
    def least_seconds(self) -> float:
        """Return how long the load must last, so that each event is healed before the next."""
        courses = itertools.chain.from_iterable(map(self._courses, COURSES))
        return LEAD_SECONDS + sum(one.lasts + one.heals for one in courses) + CALM_SECONDS

    def check(self) -> None:
        """Refuse a run that is too short for its events.

        Raises:
            BenchmarkError: it is.
        """
        if self.seconds < self.least_seconds:
            raise BenchmarkError(
                f"with these events the load lasts at least {self.least_seconds:g} s, "
                f"got {self.seconds:g}: use --seconds"
            )

    def has(self, event: Event) -> bool:
        """Return whether an event happens. Only prefork has pool processes to kill."""
        return event not in self.without and (event is not Event.POOL or self.pool == "prefork")

    def _courses(self, event: Event) -> tuple[Course, ...]:
        return COURSES[event] if self.has(event) else ()

    # -- events

    @property
    def _rounds(self) -> int:
        return max(1, int(self.seconds // ROUND_SECONDS))

    def happenings(self) -> Iterator[Happening]:
        """Yield the events in order; each is healed before the next begins."""
        window = self.seconds / self._rounds
        # What is longer than need be leaves more time to heal.
        spread = (window - LEAD_SECONDS - CALM_SECONDS) / max(
            self.least_seconds - LEAD_SECONDS - CALM_SECONDS, 1e-9
        )
        for number in range(self._rounds):
            begins = self.idle_seconds + number * window
            half = self.idle_seconds + self.seconds / 2
            late = begins + window > half - WARM_UP_SECONDS
            spares = self.seconds >= LONG_RUN_SECONDS and late
            at = begins + LEAD_SECONDS
            for event in COURSES:
                for course in self._courses(event):
                    healed_at = at + (course.lasts + course.heals) * spread
                    if not (spares and course.replaces):
                        until = at + course.lasts
                        yield Happening(event=event, at=at, until=until, healed_at=healed_at)
                    at = healed_at

    def bursts(self) -> list[float]:
        """Return when bursts begin."""
        if not self.has(Event.BURST):
            return []
        window = self.seconds / self._rounds
        return [
            self.idle_seconds + (number + share) * window
            for number in range(self._rounds)
            for share in BURSTS_AT
        ]

    # -- traffic

    def messages(self) -> list[Message]:
        """Return every message in the order in which they are sent."""
        runs = _RunTimes(self)
        ranks = {queue: itertools.count() for queue in QUEUES}
        return [
            self._message(number, *time_, next(ranks[time_[1]]), runs)
            for number, time_ in enumerate(sorted(self._times()))
        ]

    def _times(self) -> Iterator[tuple[float, str, bool]]:
        for at in _steps(0.0, self.idle_seconds, IDLE_RATE):
            yield at, URGENT, False
        for queue in QUEUES:
            for at in _steps(self.idle_seconds, self.load_ends, self.rate(queue)):
                yield at, queue, False
        slices = round(BURST_SECONDS / BURST_SLICE_SECONDS)
        for begin in self.bursts():
            for queue in (PLAIN, BATCHED):
                count = round(BURST_TIMES * self.rate(queue) * BURST_SLICE_SECONDS)
                for number in range(slices):
                    at = begin + number * BURST_SLICE_SECONDS
                    yield from itertools.repeat((at, queue, True), count)

    def _message(
        self, number: int, at: float, queue: str, is_burst: bool, rank: int, runs: _RunTimes
    ) -> Message:
        return Message(
            number=number,
            at=at,
            queue=queue,
            run_seconds=runs.next(queue, at, rank),
            size_bytes=_size(rank),
            behaviour=_behaviour(queue, rank),
            is_burst=is_burst,
        )


class _RunTimes:
    """How long each task takes: short ones, and a long one whenever the mean owes it.

    Chance would make the load of a short run anything.
    """

    def __init__(self, plan: Plan) -> None:
        self._surplus = max(0.0, plan.plain_run_seconds - _mean(*SHORT_SECONDS))
        self._owed = 0.0
        self._ranks = itertools.count()
        self._next_long = self._long()
        self._victims = [
            one.at - VICTIMS_BEFORE_SECONDS
            for one in plan.happenings()
            if COURSES[one.event][0].replaces
            for _ in range(VICTIMS)
        ]

    def next(self, queue: str, at: float, rank: int) -> float:
        """Return the run time of the next message of a queue."""
        if queue == BATCHED:
            return 0.0
        if queue == URGENT:
            return _between(*URGENT_SECONDS, _spread(rank, 1))
        self._owed += self._surplus
        if self._victims and at >= self._victims[0]:
            self._victims.pop(0)
            self._owed -= VICTIM_SECONDS
            return VICTIM_SECONDS
        if self._owed >= self._next_long:
            seconds, self._next_long = self._next_long, self._long()
            self._owed -= seconds
            return seconds
        return _between(*SHORT_SECONDS, _spread(rank, 1))

    def _long(self) -> float:
        return _between(*LONG_SECONDS, _spread(next(self._ranks), 1))


def _steps(begin: float, end: float, rate: float) -> Iterator[float]:
    return (begin + number / rate for number in range(int((end - begin) * rate)))


def _spread(rank: int, kind: int) -> float:
    """Return a number from 0 to 1: those of any consecutive ranks are spread evenly.

    Multiples of an irrational number, see Weyl's equidistribution theorem.
    """
    irrational = (math.sqrt(5), math.sqrt(2), math.sqrt(3), math.sqrt(7))[kind]
    return (rank + 1) * irrational % 1.0


def _between(low: float, high: float, share: float) -> float:
    """Return a number between, spread evenly by its logarithm: mostly low ones."""
    return float(low * (high / low) ** share)


def _mean(low: float, high: float) -> float:
    """Return the mean of `_between`."""
    return (high - low) / math.log(high / low)


def _size(rank: int) -> int:
    share = _spread(rank, 2)
    for part, low, high in SIZES:
        if share < part:
            return round(_between(low, high, share / part))
        share -= part
    return SIZES[-1][2]


def _behaviour(queue: str, rank: int) -> Behaviour:
    share = _spread(rank, 3)
    if queue == URGENT:
        return Behaviour.HEALTHY
    if share < DOOMED_SHARE:
        return Behaviour.DOOMED
    if share < DOOMED_SHARE + FLAKY_SHARE:
        return Behaviour.FLAKY
    if queue == BATCHED or share < DOOMED_SHARE + FLAKY_SHARE + SINK_SHARE:
        return Behaviour.SINKS
    return Behaviour.HEALTHY
