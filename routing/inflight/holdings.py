"""What this process holds from the queues: one object for a process, which outlives connections.

A message is held from the fetch that recorded it as unacked until its ending reached the server.
Channels come and go with connections; running work does not, so it is not theirs. Everything here
is bookkeeping without I/O: a channel takes what waits in the outbox and sends it, and a thread
renews the leases.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from routing.inflight.fetch_policy import byte_rooms
from routing.inflight.held import Held, State, Watch
from routing.inflight.leases import Fence, Keeper
from routing.inflight.locks import new_lock
from routing.inflight.outbox import Carrier, Outbox
from routing.message.evidence import Evidence
from routing.redis.clocks import ServerClock
from routing.redis.values import (
    LONGEST_RETURN_SECONDS,
    UNCHARGED,
    Burial,
    Charges,
    Ending,
    Fetch,
    Mark,
    Return,
)
from routing.topology.model import Topology

logger = logging.getLogger(__name__)

#: The prefetch of a queue that neither the table nor a batch task says anything about.
DEFAULT_PREFETCH = 32


class Holdings:
    """Counts, states and endings of the messages that this process holds.

    Arguments:
        topology: the queue table, for the prefetch of each queue.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        #: True while a worker owns the holdings: they then outlive channels.
        self.durable = False
        #: Messages that no longer count against a prefetch, since the process began.
        self.freed = 0
        #: Queue to the prefetch with which the batches that go there can fill.
        self.batch_needs: Mapping[str, int] = {}
        self._prefetch: dict[str, int] = {}
        #: What a queue may hold by what its slots can run; None when prefetch alone decides.
        self.ceiling: Callable[[str], int] | None = None
        self._reset()
        _keep_out_of_children(self)

    def _reset(self) -> None:
        self.pid = os.getpid()
        # Also taken by the thread that renews, which is no greenlet.
        self._lock = new_lock()
        self._order = itertools.count()
        self._held: dict[str, Held] = {}
        self._count: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._carriers: dict[str, Carrier] = {}
        #: Tags of messages that died before they ended; only appended to, as the collector may run
        #: at any moment.
        self._forsaken: deque[str] = deque()
        self.outbox = Outbox()
        self.clock = ServerClock()
        self.fence = Fence()
        #: Who renews the leases, while messages are held.
        self.keeper: Keeper | None = None

    # -- credit

    def prefetch(self, queue: str) -> int:
        """Return the most unfinished messages that this process may hold from a queue."""
        chosen = self._prefetch.get(queue) or self.topology.queue(queue).prefetch
        return chosen or max(DEFAULT_PREFETCH, self.batch_needs.get(queue, 0))

    def set_prefetch(self, queue: str, count: int) -> None:
        """Change a queue's prefetch in this process, until it ends.

        Raises:
            ValueError: the count is not a positive number.
        """
        if count < 1:
            raise ValueError(f"queue {queue!r}: prefetch must be at least 1, got {count!r}")
        self._prefetch[queue] = count

    def credit(self, queue: str) -> int:
        """Return how many more messages may be fetched from a queue now."""
        return self.credit_of(queue)[0]

    def credit_of(self, queue: str) -> tuple[int, int]:
        """Return a queue's credit now, and its prefetch."""
        most = prefetch = self.prefetch(queue)
        if self.ceiling is not None:
            most = min(most, self.ceiling(queue))
        return most - self._count.get(queue, 0) - self._asked.get(queue, 0), prefetch

    def byte_rooms(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many bytes may be fetched from each of these queues, the consumed ones."""
        return byte_rooms(dict(self._bytes), queues, total=self.topology.max_inflight_bytes)

    def held_bytes(self, queue: str) -> int:
        """Return how many bytes of a queue's messages are held."""
        return self._bytes.get(queue, 0)

    def held(self, queue: str) -> int:
        """Return how many messages count against a queue's prefetch."""
        return self._count.get(queue, 0)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return held and prefetch of every queue of the table or with something held."""
        names = dict.fromkeys([*self.topology.queues, *self._count])
        return {q: {"held": self.held(q), "prefetch": self.prefetch(q)} for q in names}

    # -- fetching

    def asking(self, fetch: Fetch) -> None:
        """Set aside the credit that a fetch on its way has asked for."""
        with self._lock:
            for queue, credit in fetch.asked:
                self._asked[queue] = self._asked.get(queue, 0) + credit

    def answered(self, fetch: Fetch, arrived: Iterable[tuple[str, str, int]]) -> None:
        """Turn the credit of a fetch into held messages: (tag, queue, bytes) in fetch order."""
        with self._lock:
            self._release(fetch)
            for tag, queue, size_bytes in arrived:
                self._held[tag] = Held(tag, queue, next(self._order), size_bytes)
                self._count[queue] = self._count.get(queue, 0) + 1
                self._bytes[queue] = self._bytes.get(queue, 0) + size_bytes

    def unanswered(self, fetch: Fetch) -> None:
        """Remember a fetch whose reply was lost: what it took must be given back by enumeration."""
        with self._lock:
            self._release(fetch)
        self.outbox.add_unread(fetch)

    def refused(self, fetch: Fetch) -> None:
        """Note that the server refused a fetch, which took nothing."""
        with self._lock:
            self._release(fetch)

    def _release(self, fetch: Fetch) -> None:
        for queue, credit in fetch.asked:
            self._asked[queue] -= credit

    # -- states

    def identify(
        self,
        tag: str,
        message_id: str,
        *,
        charges: Charges = UNCHARGED,
        at_ms: int = 0,
        returned: int = 0,
    ) -> None:
        """Note whose a held message is.

        Arguments:
            tag: the message.
            message_id: its id.
            charges: how often it took a process down before.
            at_ms: when it was pushed, by the server's clock; 0 when nobody has noted it.
            returned: how often it was given back because it could not be run then.
        """
        if held := self._held.get(tag):
            held.message_id = message_id
            held.charges = charges
            held.at_ms = at_ms
            held.returned = returned

    def watch(self, tag: str, message: object) -> None:
        """Give a message back if it dies before it ends: nobody is left who could end it."""
        if self.durable and (held := self._held.get(tag)):
            held.watch = Watch(message, self._forsaken, tag)

    def get(self, tag: str) -> Held | None:
        """Return what is known about a message, None when it is not held."""
        return self._held.get(tag)

    def state(self, tag: str) -> State | None:
        """Return how far a message has come, None when it is not held."""
        held = self._held.get(tag)
        return held.state if held else None

    def mark(self, tag: str, state: State) -> None:
        """Note how far a message has come; waiting for an ETA takes no credit."""
        with self._lock:
            held = self._held.get(tag)
            if held is None or held.state is state:
                return
            if state is State.SCHEDULED:
                self._count[held.queue] -= 1
                self.freed += 1
            elif held.state is State.SCHEDULED:
                self._count[held.queue] += 1
            held.state = state
        if state is State.STARTED and self.keeper is not None:
            self.keeper.started(tag)

    def mark_all(self, tags: Iterable[str], state: State) -> None:
        """Note how far the messages of a batch have come."""
        for tag in tags:
            self.mark(tag, state)

    # -- endings

    def end(self, tag: str, ending: str) -> bool:
        """Note that a message has ended; False when it is not held (any more).

        The credit is free at once: the ending leaves with, or before, the next fetch.
        """
        return self.end_all([(tag, ending)]) > 0

    def end_all(self, endings: Iterable[tuple[str, str]]) -> int:
        """Note how many messages have ended, as (tag, ending); returns how many were held."""
        ended: list[Ending] = []
        with self._lock:
            for tag, name in endings:
                if held := self._drop(tag):
                    counted_id = held.message_id if held.charges.count else ""
                    ended.append(Ending(held.queue, name, tag, counted_id))
        if ended:
            self.outbox.add_endings(ended)
            self._tell(ended[-1].tag, ended[-1].queue)
        return len(ended)

    def bury(self, tag: str, evidence: Evidence, text: str = "") -> bool:
        """Note that a message ends as a dead letter; False when it is not held (any more).

        Where its queue keeps none, it just ends.

        Arguments:
            tag: the delivery tag.
            evidence: why.
            text: what is kept in its place, for a message that is none.
        """
        held = self._held.get(tag)
        if held is None or not self.topology.queue(held.queue).max_dead:
            return self.end(tag, evidence.ending)
        with self._lock:
            if self._drop(tag) is None:
                return False
        known = replace(evidence, queue=held.queue)
        burial = Burial(tag, held.message_id, known.rest(), text)
        self.outbox.add_burial(held.queue, burial)
        self._tell(tag, held.queue)
        return True

    def give_back(self, tag: str, mark: Mark = Mark.NONE, evidence: str = "") -> bool:
        """Note that a message goes back to the front of its queue; False when it is not held.

        One that comes later is neither counted as a delivery nor becomes a dead letter, however
        often that happens.

        Arguments:
            tag: the message.
            mark: what its next worker must know.
            evidence: why it is charged a delivery.
        """
        with self._lock:
            held = self._drop(tag)
            if held is None:
                return False
        self._return(held, mark, evidence)
        if mark is Mark.LATER:
            _say_later(held)
        self._tell(tag, held.queue)
        return True

    def give_back_waiting(self) -> int:
        """Give back all that was not handed to the pool; returns how many."""
        return self._give_back_up_to(State.SCHEDULED)

    def give_back_all(self) -> int:
        """Give back all that has not ended; returns how many."""
        return self._give_back_up_to(State.STARTED)

    def give_back_of(self, courier: str) -> int:
        """Give back all that one channel fetched and that has not ended; returns how many."""
        return self._give_back_up_to(State.STARTED, f"{courier}:")

    def _give_back_up_to(self, state: State, prefix: str = "") -> int:
        with self._lock:
            chosen = [
                held
                for held in self._held.values()
                if held.state <= state and held.tag.startswith(prefix)
            ]
            for held in chosen:
                self._drop(held.tag)
        for held in chosen:
            # Ending it early was the worker's choice, so it is not charged.
            begun = held.state in (State.HANDED, State.STARTED)
            self._return(held, Mark.REDELIVERED if begun else Mark.NONE)
        return len(chosen)

    def give_back_forsaken(self) -> int:
        """Give back messages that died before they ended, as their callbacks were lost.

        Uncharged: the process that they ran in lives.
        """
        returned = 0
        while self._forsaken:
            tag = self._forsaken.popleft()
            begun = self.state(tag) in (State.HANDED, State.STARTED)
            returned += self.give_back(tag, Mark.REDELIVERED if begun else Mark.NONE)
        return returned

    def _drop(self, tag: str) -> Held | None:
        held = self._held.pop(tag, None)
        if held is not None:
            self._bytes[held.queue] -= held.size_bytes
            self.freed += 1
            if held.state is not State.SCHEDULED:
                self._count[held.queue] -= 1
        return held

    def _return(self, held: Held, mark: Mark, evidence: str = "") -> None:
        returned = Return(held.tag, held.message_id, mark, evidence, held.order)
        self.outbox.add_return(held.queue, returned)

    def _tell(self, tag: str, queue: str) -> None:
        if (carrier := self.carrier(tag)) is not None:
            carrier.ended(queue)

    # -- leases

    def leases(self, *, without_waiting: bool = False) -> list[tuple[str, str]]:
        """Return the tags to renew, each with the message's id when it has started, else "".

        What has ended stays ours until that is settled; what died stays nobody's.

        Arguments:
            without_waiting: leave to others what was not handed to the pool.
        """
        least = State.HANDED if without_waiting else State.WAITING
        with self._lock:
            alive = [
                (held.tag, held.message_id if held.state is State.STARTED else "")
                for held in self._held.values()
                if held.state >= least and (held.watch is None or held.watch() is not None)
            ]
        return alive + [(tag, "") for tag in self.outbox.tags()]

    def started(self, tags: Iterable[str]) -> list[tuple[str, str]]:
        """Return those of these tags that run, with the ids of their messages."""
        with self._lock:
            running = [self._held[tag] for tag in tags if tag in self._held]
        return [(h.tag, h.message_id) for h in running if h.state is State.STARTED]

    def is_unheard(self, seconds: float) -> bool:
        """Return whether the broker has left a fetch without a reply for so long."""
        return any(carrier.is_unheard(seconds) for carrier in list(self._carriers.values()))

    def doubt(self) -> None:
        """Start nothing until the leases were renewed."""
        if self.keeper is not None:
            self.keeper.check_now()

    def forget(self, tags: Iterable[str]) -> int:
        """Note that these messages are another worker's now; returns how many were held here.

        What waits must not be started, and the ending of what runs is ignored.
        """
        with self._lock:
            return sum(self._drop(tag) is not None for tag in tags)

    # -- carriers

    def attach(self, name: str, carrier: Carrier) -> None:
        """Let a consuming channel carry endings; its name begins the tags of what it fetches."""
        self._carriers[name] = carrier

    def detach(self, name: str) -> None:
        """Note that a channel carries no more; detaching twice is safe."""
        self._carriers.pop(name, None)
        if not self._carriers and not self.durable:
            self.dismiss()

    def dismiss(self) -> None:
        """Let nobody renew leases any more; dismissing twice is safe."""
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            keeper.stop()

    def carrier(self, tag: str) -> Carrier | None:
        """Return the channel that fetched this tag or, when it has gone, another."""
        name = tag.partition(":")[0]
        return self._carriers.get(name) or next(iter(self._carriers.values()), None)


def _say_later(held: Held) -> None:
    seconds = min(LONGEST_RETURN_SECONDS, 2 ** min(held.returned, 6))
    logger.warning(
        "queue %r: message %s is given back and comes again in %d s (times so far: %d)",
        held.queue,
        held.message_id or held.tag,
        seconds,
        held.returned + 1,
        extra={"event": "given_back_later", "count": held.returned + 1},
    )


def _keep_out_of_children(holdings: Holdings) -> None:
    """A forked child holds nothing: its parent does."""
    reference = weakref.ref(holdings)

    def forget() -> None:
        if (inherited := reference()) is not None:
            inherited._reset()
            inherited.durable = False

    os.register_at_fork(after_in_child=forget)
