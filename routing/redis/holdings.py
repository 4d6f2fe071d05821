"""What this process holds from the queues: one object for a process, which outlives connections.

A message is held from the fetch that recorded it as unacked until its ending reached the server.
Channels come and go with connections; running work does not, so it is not theirs. Everything here
is bookkeeping without I/O: a channel takes a settlement, sends it, and confirms or restores it.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from routing.config import Topology
from routing.evidence import Evidence
from routing.redis.records import Burial, Ending, Fetch, Held, Mark, Return, Settlement, State

#: Most tags in one settlement: well below what one script call can unpack, and about 10 ms of the
#: server.
SETTLE_AT_MOST = 3000


class Carrier(Protocol):
    """What takes endings to the broker."""

    def ended(self, queue: str) -> None:
        """Note that endings wait."""

    def flush(self) -> None:
        """Carry them now, as far as the broker can be reached."""


class Holdings:
    """Counts, states and endings of the messages that this process holds.

    Arguments:
        topology: the queue table, for the prefetch of each queue.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        #: True while a worker owns the holdings: they then outlive channels.
        self.durable = False
        self._prefetch: dict[str, int] = {}
        self._reset()
        _keep_out_of_children(self)

    def _reset(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._held: dict[str, Held] = {}
        self._count: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._ended: list[Ending] = []
        self._burials: dict[str, list[Burial]] = {}
        self._oldest_ending = 0.0
        self._returns: dict[str, list[Return]] = {}
        self._unread: list[Fetch] = []
        self._carriers: dict[str, Carrier] = {}

    # -- credit

    def prefetch(self, queue: str) -> int:
        """Return the most unfinished messages that this process may hold from a queue."""
        return self._prefetch.get(queue) or self.topology.queue(queue).prefetch

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
        return self.prefetch(queue) - self._count.get(queue, 0) - self._asked.get(queue, 0)

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

    def answered(self, fetch: Fetch, tags: Sequence[tuple[str, str]]) -> None:
        """Turn the credit of a fetch into held messages, given as (tag, queue) in fetch order."""
        with self._lock:
            self._release(fetch)
            for tag, queue in tags:
                self._held[tag] = Held(tag, queue, next(self._order))
                self._count[queue] = self._count.get(queue, 0) + 1

    def unanswered(self, fetch: Fetch) -> None:
        """Remember a fetch whose reply was lost: what it took must be given back by enumeration."""
        with self._lock:
            self._release(fetch)
            self._unread.append(fetch)

    def _release(self, fetch: Fetch) -> None:
        for queue, credit in fetch.asked:
            self._asked[queue] -= credit

    # -- states

    def identify(self, tag: str, message_id: str, *, charged: bool = False) -> None:
        """Note the id of a held message, and whether a delivery of it was charged before."""
        if held := self._held.get(tag):
            held.message_id = message_id
            held.charged = charged

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
            elif held.state is State.SCHEDULED:
                self._count[held.queue] += 1
            held.state = state

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
        ended: list[Held] = []
        with self._lock:
            if not self.endings_waiting:
                self._oldest_ending = time.monotonic()
            for tag, ending in endings:
                if (held := self._drop(tag)) is None:
                    continue
                counted_id = held.message_id if held.charged else ""
                self._ended.append(Ending(held.queue, ending, tag, counted_id))
                ended.append(held)
        if ended:
            self._tell(ended[-1])
        return len(ended)

    def bury(self, tag: str, evidence: Evidence, text: str = "") -> bool:
        """Note that a message ends as a dead letter; False when it is not held (any more).

        Where its queue keeps none, it just ends.

        Arguments:
            tag: the delivery tag.
            evidence: why.
            text: what is kept in its place, for a message that is none.
        """
        with self._lock:
            held = self._held.get(tag)
            keeps = held is not None and self.topology.queue(held.queue).max_dead > 0
            if held is not None and keeps:
                if not self.endings_waiting:
                    self._oldest_ending = time.monotonic()
                self._drop(tag)
                burial = Burial(tag, held.message_id, evidence.rest(), text)
                self._burials.setdefault(held.queue, []).append(burial)
        if held is not None and keeps:
            self._tell(held)
            return True
        return self.end(tag, evidence.ending)

    def give_back(self, tag: str, mark: Mark = Mark.NONE, evidence: str = "") -> bool:
        """Note that a message goes back to the front of its queue; False when it is not held.

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
        self._tell(held)
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
                # Ending it early was the worker's choice, so it is not charged.
                begun = held.state in (State.HANDED, State.STARTED)
                self._return(held, Mark.REDELIVERED if begun else Mark.NONE)
        return len(chosen)

    def _drop(self, tag: str) -> Held | None:
        held = self._held.pop(tag, None)
        if held is not None and held.state is not State.SCHEDULED:
            self._count[held.queue] -= 1
        return held

    def _return(self, held: Held, mark: Mark, evidence: str = "") -> None:
        returned = Return(held.tag, held.message_id, mark, evidence, held.order)
        self._returns.setdefault(held.queue, []).append(returned)

    def _tell(self, held: Held) -> None:
        if (carrier := self.carrier(held.tag)) is not None:
            carrier.ended(held.queue)

    # -- carriers

    def attach(self, name: str, carrier: Carrier) -> None:
        """Let a consuming channel carry endings; its name begins the tags of what it fetches."""
        self._carriers[name] = carrier

    def detach(self, name: str) -> None:
        """Note that a channel carries no more; detaching twice is safe."""
        self._carriers.pop(name, None)

    def carrier(self, tag: str) -> Carrier | None:
        """Return the channel that fetched this tag or, when it has gone, another."""
        name = tag.partition(":")[0]
        return self._carriers.get(name) or next(iter(self._carriers.values()), None)

    # -- what leaves with the next call

    @property
    def endings_waiting(self) -> int:
        """Number of endings that no call has carried yet, burials among them."""
        return len(self._ended) + sum(map(len, self._burials.values()))

    @property
    def ending_age(self) -> float:
        """Seconds since the oldest ending that no call has carried yet; 0 when there is none."""
        return time.monotonic() - self._oldest_ending if self.endings_waiting else 0.0

    @property
    def returns_waiting(self) -> bool:
        """True while messages wait to be given back."""
        return bool(self._returns or self._unread)

    def take_settlement(self) -> Settlement:
        """Take the oldest endings, for a call that will carry them."""
        with self._lock:
            taken, self._ended = self._ended[:SETTLE_AT_MOST], self._ended[SETTLE_AT_MOST:]
        return Settlement(taken)

    def restore_settlement(self, settlement: Settlement) -> None:
        """Take endings back whose call may not have arrived; settling twice changes nothing."""
        if not settlement.endings:
            return
        with self._lock:
            if not self.endings_waiting:
                self._oldest_ending = time.monotonic()
            self._ended[:0] = settlement.endings

    def take_burials(self) -> dict[str, list[Burial]]:
        """Take the dead letters of each queue, for calls that will carry them."""
        with self._lock:
            burials, self._burials = self._burials, {}
        return burials

    def restore_burials(self, burials: Mapping[str, Sequence[Burial]]) -> None:
        """Take burials back whose call may not have arrived; burying twice changes nothing."""
        with self._lock:
            if not self.endings_waiting:
                self._oldest_ending = time.monotonic()
            for queue, entries in burials.items():
                self._burials.setdefault(queue, [])[:0] = entries

    def take_returns(self) -> list[tuple[str, list[Return]]]:
        """Take what must be given back: per queue, in fetch order."""
        with self._lock:
            returns, self._returns = self._returns, {}
            unread, self._unread = self._unread, []
        # What goes back last comes first: the newest fetch before what was held before it.
        taken = [
            (queue, [Return(tag) for tag in fetch.tags(position)])
            for fetch in reversed(unread)
            for position, (queue, _) in enumerate(fetch.asked)
        ]
        taken += [
            (queue, sorted(entries, key=lambda returned: returned.order))
            for queue, entries in returns.items()
        ]
        return taken

    def restore_returns(self, returns: Iterable[tuple[str, Sequence[Return]]]) -> None:
        """Take returns back whose call may not have arrived; giving back twice changes nothing."""
        with self._lock:
            for queue, entries in returns:
                kept = self._returns.setdefault(queue, [])
                kept[:0] = [replace(entry, order=-1) for entry in entries]


def _keep_out_of_children(holdings: Holdings) -> None:
    """A forked child holds nothing: its parent does."""
    reference = weakref.ref(holdings)

    def forget() -> None:
        if (inherited := reference()) is not None:
            inherited._reset()
            inherited.durable = False

    os.register_at_fork(after_in_child=forget)
