"""What a channel may fetch of each of its queues now, by credit, by bytes and by its inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from routing.inflight.fetch_policy import Allowance
from routing.inflight.holdings import Holdings
from routing.inflight.prefetch import Room
from routing.redis.values import ANY_PLACES, Fetch
from routing.topology.limits import NO_GATE, gate_text
from routing.transport.inbox import Inbox

#: A queue is not asked for more while that many of its messages wait for delivery.
INBOX_HIGH = 256


class Consumed:
    """The queues that a channel consumes from; true while any is consumed with acknowledgement.

    Arguments:
        active: returns those that kombu asks for messages, fanouts apart.
        most: returns how many unfinished messages of all of them the channel may have, as its
            `basic_qos` says; 0 for any number.
    """

    def __init__(
        self, active: Callable[[], Iterable[str]], most: Callable[[], int] = lambda: 0
    ) -> None:
        self._active, self.most = active, most
        self._by_tag: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._by_tag)

    def add(self, consumer_tag: str, queue: str) -> None:
        """Note that a queue is consumed with acknowledgement."""
        self._by_tag[consumer_tag] = queue

    def remove(self, consumer_tag: str) -> str | None:
        """Note that a consumer was cancelled; returns its queue, None without acknowledgement."""
        return self._by_tag.pop(consumer_tag, None)

    @property
    def engine_queues(self) -> Sequence[str]:
        """Those with acknowledgement, which are the engine's."""
        return list(dict.fromkeys(self._by_tag.values()))

    @property
    def free_queues(self) -> Sequence[str]:
        """Those without, which share the channel."""
        ours = self.engine_queues
        return [queue for queue in self._active() if queue not in ours]


class Allowances:
    """The allowances of one channel.

    Arguments:
        consumed: the queues.
        holdings: what counts against their prefetch.
        inbox: what has come and was not delivered yet.
        name: begins the tags of what the channel has fetched.
    """

    def __init__(
        self, consumed: Consumed, holdings: Holdings, inbox: Inbox, name: str = ""
    ) -> None:
        self._consumed, self._holdings, self._inbox = consumed, holdings, inbox
        #: For how many slots work was to be fetched at the last look.
        self._places = 0
        self._name = name

    @property
    def full(self) -> int:
        """How many queues are not asked for more, as too much waits for delivery."""
        return self._inbox.count_full(INBOX_HIGH)

    def all(self) -> list[Allowance]:
        """Return the allowance of each queue that is consumed with acknowledgement."""
        queues = self._consumed.engine_queues
        size_bytes = self._holdings.credit.byte_allowances(queues)
        unsettled = self._holdings.outbox.unsettled()
        rooms: Mapping[str, Room] = {}
        if (demand := self._holdings.prefetch.demand) is not None:
            rooms, self._places = demand.rooms(queues, self._holdings.ready)
        allowances = [
            self._allowance(queue, size_bytes[queue], unsettled[queue], rooms.get(queue))
            for queue in queues
        ]
        if not (most := self._consumed.most()):
            return allowances
        self._places = max(0, most - self._count())  # which no two queues can have
        return [
            one._replace(
                credit=min(one.credit, self._places), prefetch=min(one.prefetch, most), per_slot=1
            )
            for one in allowances
        ]

    def _count(self) -> int:
        """Return how many unfinished messages the channel has."""
        tags = (tag for tag, _ in self._holdings.leases())
        ours = [tag for tag in tags if tag.startswith(f"{self._name}:")]
        return sum(self._holdings.get(tag) is not None for tag in ours)

    def _allowance(
        self, queue: str, size_bytes: int, unsettled: int, room: Room | None
    ) -> Allowance:
        prefetch = self._holdings.prefetch
        most, is_paused = prefetch.of(queue), prefetch.table.queue(queue).paused
        if is_paused or self._inbox.waiting(queue) >= INBOX_HIGH or not size_bytes:
            return Allowance(queue, 0, most)
        left = self._holdings.credit.of(queue) - unsettled
        if room is None:
            return Allowance(queue, left, most, size_bytes)
        wanted = room.free - self._holdings.credit.asked(queue)
        return Allowance(queue, min(left, wanted), min(most, room.most), size_bytes, room.per_slot)

    def fetch(
        self, allowances: Sequence[Allowance], *, prefix: str, quiet: tuple[str, ...]
    ) -> Fetch:
        """Return the fetch that asks for what these allow.

        A reply has one bound for all queues, and so have the slots, so who comes first finds place:
        who has its turn or, where there are no slots, who holds the fewest bytes for its weight.

        Arguments:
            allowances: those of the queues that are asked.
            prefix: what the tags begin with.
            quiet: the queues whose bells are only looked at.
        """
        held, config = self._holdings.credit.held_bytes, self._holdings.prefetch.table.queue
        demand = self._holdings.prefetch.demand
        if demand is None:
            order = sorted(allowances, key=lambda one: held(one.queue) / config(one.queue).weight)
            places = self._places if self._consumed.most() else ANY_PLACES
        else:
            by_name = {one.queue: one for one in allowances}
            order = [by_name[queue] for queue in demand.order(list(by_name))]
            places = self._places
        return Fetch(
            prefix,
            tuple((one.queue, one.ask) for one in order),
            tuple(one.size_bytes for one in order),
            places=places,
            per_slot=tuple(one.per_slot for one in order),
            quiet=quiet,
            gates=self._gates([one.queue for one in order]),
            limits=demand.limits_text if demand is not None else "",
        )

    def with_slots(self, queues: Iterable[str]) -> Iterable[str]:
        """Return those of these queues in which an ending lets something else start."""
        table = self._holdings.prefetch.table
        return [queue for queue in queues if table.queue(queue).concurrency is not None]

    def _gates(self, queues: Sequence[str]) -> tuple[str, ...]:
        """Return what limits each of these queues now; nothing where nothing does."""
        prefetch = self._holdings.prefetch
        unit = prefetch.demand.call_size if prefetch.demand else (lambda _: 1)
        texts = tuple(
            gate_text(prefetch.table.queue(q), unit=unit(q), has_limits=prefetch.has_limits)
            for q in queues
        )
        return texts if any(text != NO_GATE for text in texts) else ()
