"""What a channel may fetch of each of its queues now, by credit, by bytes and by its inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from routing.inflight.fetch_policy import Allowance
from routing.inflight.holdings import Holdings
from routing.redis.values import Fetch
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
        self._name = name

    def all(self) -> list[Allowance]:
        """Return the allowance of each queue that is consumed with acknowledgement."""
        queues = self._consumed.engine_queues
        size_bytes = self._holdings.credit.byte_allowances(queues)
        unsettled = self._holdings.outbox.unsettled()
        allowances = [self._allowance(one, size_bytes[one], unsettled[one]) for one in queues]
        if not (most := self._consumed.most()):
            return allowances
        left = most - self._count()
        return [
            one._replace(credit=min(one.credit, left), prefetch=min(one.prefetch, most))
            for one in allowances
        ]

    def _count(self) -> int:
        """Return how many unfinished messages the channel has."""
        tags = (tag for tag, _ in self._holdings.leases())
        ours = [tag for tag in tags if tag.startswith(f"{self._name}:")]
        return sum(self._holdings.get(tag) is not None for tag in ours)

    def _allowance(self, queue: str, size_bytes: int, unsettled: int) -> Allowance:
        waiting, prefetch = self._inbox.waiting(queue), self._holdings.prefetch
        count = prefetch.of(queue)
        most = count
        if prefetch.ceiling is not None:
            waiting = INBOX_HIGH * len(self._inbox)  # they take the slots that seem to be free
            most = min(count, prefetch.ceiling(queue))
        if waiting >= INBOX_HIGH or not size_bytes:
            return Allowance(queue, 0, count)
        left = self._holdings.credit.left(queue, most) - unsettled
        return Allowance(queue, left, count, size_bytes)

    def fetch(
        self, allowances: Iterable[Allowance], *, prefix: str, quiet: tuple[str, ...]
    ) -> Fetch:
        """Return the fetch that asks for what these allow.

        A reply has one bound for all queues, and who comes first finds place: first comes who holds
        the fewest bytes for its weight.

        Arguments:
            allowances: those of the queues that are asked.
            prefix: what the tags begin with.
            quiet: the queues whose bells are only looked at.
        """
        held, config = self._holdings.credit.held_bytes, self._holdings.topology.queue
        order = sorted(allowances, key=lambda one: held(one.queue) / config(one.queue).weight)
        fetch = Fetch(
            prefix,
            tuple((one.queue, one.ask) for one in order),
            tuple(one.size_bytes for one in order),
            quiet=quiet,
        )
        # What a slot can run is the same slot's for every queue, and what a channel may have too.
        is_shared = self._holdings.prefetch.ceiling is not None or self._consumed.most()
        return replace(fetch, most_queues=1) if is_shared else fetch
