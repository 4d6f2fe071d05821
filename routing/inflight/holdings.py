"""What this process holds from the queues of one database; it outlives connections.

A message is held from the fetch that recorded it as unacked until its ending reached the server.
Channels come and go with connections; running work does not, so it is not theirs. Bookkeeping
without I/O: a channel sends what waits in the outbox, and a thread renews the leases.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from routing.inflight.credit import Credit
from routing.inflight.forks import in_children
from routing.inflight.held import Held, State, Watch
from routing.inflight.leases import Keeper, Kept, LeaseGuard
from routing.inflight.locks import new_lock
from routing.inflight.outbox import Outbox
from routing.inflight.prefetch import Prefetch
from routing.inflight.ready import Ready
from routing.inflight.settlers import Settlers
from routing.message.evidence import Evidence
from routing.redis.clocks import ServerClock
from routing.redis.values import NOT_COUNTED, Burial, DeliveryCount, Ending, Fetch, Mark, Return
from routing.topology.model import Topology


class Holdings:
    """Counts, states and endings of the messages that this process holds from one database.

    Arguments:
        topology: the queue table.
        prefetch: the prefetch of each queue in this process.
    """

    def __init__(self, topology: Topology, prefetch: Prefetch | None = None) -> None:
        self.topology = topology
        self.prefetch = prefetch or Prefetch(topology)
        #: True while a worker owns the holdings: they then outlive channels.
        self.durable = False
        #: How many messages were requeued because they got no slot here.
        self.stuck = 0
        #: Whether the worker that owns them was told to stop.
        self.is_stopping: Callable[[], bool] = lambda: False
        self._reset()
        in_children(self._leave_to_the_parent)

    def _reset(self) -> None:
        self.pid = os.getpid()
        # Also taken by the thread that renews, which is no greenlet.
        self._lock = new_lock()
        self._order = itertools.count()
        self._held: dict[str, Held] = {}
        self.credit = Credit(self.prefetch, max_bytes=self.topology.max_inflight_bytes)
        #: What waits for a slot.
        self.ready = Ready()
        self.settlers = Settlers()
        #: When a message has last ended or gone back, by `time.monotonic`.
        self.last_ended = 0.0
        #: Seconds from one ending to the next, lately.
        self.ending_interval = 0.0
        #: Tags of messages that died before they ended; only appended to, as the collector may run
        #: at any moment.
        self._forsaken: deque[str] = deque()
        self.outbox = Outbox()
        self.clock = ServerClock()
        self.lease_guard = LeaseGuard()
        self.kept = Kept()
        #: Who renews the leases, while messages are held.
        self.keeper: Keeper | None = None

    def _leave_to_the_parent(self) -> None:
        """A forked child holds nothing: its parent does."""
        self._reset()
        self.durable = False

    # -- fetching

    def asking(self, fetch: Fetch) -> None:
        """Set aside the credit that a fetch on its way has asked for."""
        with self._lock:
            self.credit.ask(fetch)

    def answered(self, fetch: Fetch, arrived: Iterable[tuple[str, str, int]]) -> None:
        """Turn the credit of a fetch into held messages: (tag, queue, bytes) in fetch order."""
        with self._lock:
            self.credit.release(fetch)
            for tag, queue, size_bytes in (arrived := list(arrived)):
                self._held[tag] = Held(tag, queue, next(self._order), size_bytes)
                self.credit.take(queue, size_bytes)
            self.ready.arrived(queue for _, queue, _ in arrived)
        self._watch()

    def unanswered(self, fetch: Fetch) -> None:
        """Remember a fetch whose reply was lost: what it took must be requeued by enumeration."""
        self.refused(fetch)
        self.outbox.add_unread(fetch)

    def refused(self, fetch: Fetch) -> None:
        """Note that a refused fetch took nothing."""
        with self._lock:
            self.credit.release(fetch)

    # -- states

    def identify(
        self,
        tag: str,
        message_id: str,
        *,
        delivery_count: DeliveryCount = NOT_COUNTED,
        at_ms: int = 0,
        returned: int = 0,
    ) -> None:
        """Note whose a held message is.

        Arguments:
            tag: the message.
            message_id: its id.
            delivery_count: how often it killed a process before.
            at_ms: when it was pushed, by the server's clock; 0 when nobody has noted it.
            returned: how often it was requeued because it could not be run then.
        """
        if held := self._held.get(tag):
            held.message_id = message_id
            held.delivery_count = delivery_count
            held.at_ms = at_ms
            held.returned = returned

    def watch(self, tag: str, message: object) -> None:
        """Give a message back if it dies before it ends: nobody is left who could end it."""
        if self.durable and (held := self._held.get(tag)):
            held.watch = Watch(message, self._forsaken, tag)

    def get(self, tag: str) -> Held | None:
        """Return a message, None when it is not held."""
        return self._held.get(tag)

    def mark(self, tags: Sequence[str], state: State) -> None:
        """Note how far these messages, of one run, have come."""
        with self._lock:
            held = filter(None, map(self._held.get, tags))
            moved = [one for one in held if one.state is not state]
            self.ready.move(moved, state)
            for one in moved:
                one.company = len(tags)
                one.has_run = one.has_run or state is State.STARTED
        if state is State.STARTED and self.keeper is not None:
            self.keeper.started(tags)

    def limit(self, tag: str, *, is_limited: bool) -> None:
        """Note that a message waits for the rate of its task, or does so no more."""
        with self._lock:
            if (held := self._held.get(tag)) is not None:
                self.ready.limit(held, is_limited=is_limited)

    def has_turn(self, queue: str) -> None:
        """Note that work of a queue waits for nothing but a slot."""
        self.ready.has_turn(queue)
        self._watch()

    def _watch(self) -> None:
        if self.keeper is not None and self.durable:
            self.keeper.watch()

    # -- endings

    def end(self, tag: str, ending: str, *, at_once: bool = False) -> bool:
        """Note that a message has ended; False when it is not held (any more).

        The credit is free at once: the ending leaves with, or before, the next fetch.

        Arguments:
            tag: the message.
            ending: name of the ledger's counter, such as "done" or "failed".
            at_once: the broker must know before this returns.
        """
        return self.end_all([(tag, ending)], at_once=at_once) > 0

    def end_all(self, endings: Iterable[tuple[str, str]], *, at_once: bool = False) -> int:
        """Note how many messages have ended, as (tag, ending); returns how many were held."""
        ended: list[Ending] = []
        with self._lock:
            for tag, name in endings:
                if held := self._held.get(tag):
                    ended.append(Ending(held.queue, name, tag))
            # First, as a fetch with the credit that is freed then must carry it along.
            self.outbox.add_endings(ended)
            ended = [ending for ending in ended if self._drop(ending.tag)]
        if ended:
            self._tell(ended[-1].tag, ended[-1].queue, at_once=at_once)
        return len(ended)

    def bury(self, tag: str, evidence: Evidence, payload: str = "") -> bool:
        """Note that a message ends as a dead letter; False when it is not held (any more).

        Where its queue keeps none, it just ends.

        Arguments:
            tag: the delivery tag.
            evidence: why.
            payload: what is kept in its place, for a malformed message.
        """
        if (held := self._held.get(tag)) is None or not self.topology.queue(held.queue).max_dead:
            return self.end(tag, evidence.ending)
        burial = Burial(tag, replace(evidence, queue=held.queue).rest(), payload)
        with self._lock:
            if tag not in self._held:
                return False
            self.outbox.add_burial(held.queue, burial)
            self._drop(tag)
        self._tell(tag, held.queue)
        return True

    def requeue(self, tag: str, mark: Mark = Mark.NONE, evidence: str = "") -> bool:
        """Note that a message is requeued at the front; False when it is not held.

        Arguments:
            tag: the message.
            mark: what its next worker must know.
            evidence: why it is charged a delivery, which `Mark.COUNTED` does.
        """
        with self._lock:
            if (held := self._held.get(tag)) is None:
                return False
            self._return(held, mark, evidence)
        if mark is Mark.LATER:
            held.say_later()
        self._tell(tag, held.queue)
        return True

    def requeue_all(self, *, up_to: State = State.STARTED, of: str = "", queue: str = "") -> int:
        """Requeue all that has not ended; returns how many.

        Arguments:
            up_to: only what has come no further.
            of: only what the channel of this name fetched.
            queue: only what came from it.
        """
        prefix = f"{of}:" if of else ""
        with self._lock:
            held = [h for h in self._held.values() if h.state <= up_to and h.tag.startswith(prefix)]
            held = [h for h in held if queue in ("", h.queue)]
            for one in held:
                # Ending it early was the worker's choice, so it is not charged.
                self._return(one, one.mark)
        return len(held)

    def requeue_waiting(self, queue: str) -> int:
        """Requeue what waits for a slot, as another worker has one; returns how many."""
        with self._lock:
            waiting = [h for h in self._held.values() if h.queue == queue and h.is_ready]
            for held in waiting:
                self._return(held, held.mark)
        self.stuck += len(waiting)
        return len(waiting)

    def requeue_forsaken(self) -> int:
        """Requeue messages that died before they ended, as their callbacks were lost.

        Uncharged: the process that they ran in lives.
        """
        returned = 0
        while self._forsaken:
            if (held := self.get(self._forsaken.popleft())) is not None:
                returned += self.requeue(held.tag, held.mark)
        return returned

    def _drop(self, tag: str) -> Held | None:
        if (held := self._held.pop(tag, None)) is not None:
            self.credit.free(held.queue, held.size_bytes)
            if held.is_ready:
                self.ready.remove(held.queue)
        return held

    def _return(self, held: Held, mark: Mark, evidence: str = "") -> None:
        returned = Return(held.tag, held.message_id, mark, evidence, held.order)
        self.outbox.add_return(held.queue, returned)
        self._drop(held.tag)

    def _tell(self, tag: str, queue: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        self.ending_interval += (min(1.0, now - self.last_ended) - self.ending_interval) / 8
        self.last_ended = now
        if (settler := self.settlers.of(tag)) is not None:
            settler.ended(at_once=at_once)
        if self.keeper is not None:
            self.keeper.watch()
        self.settlers.made_room([queue])

    # -- leases

    def leases(self, *, without_waiting: bool = False) -> list[tuple[str, str]]:
        """Return the tags to renew, each with what is told of its run.

        What has ended stays ours until that is settled; what died stays nobody's.

        Arguments:
            without_waiting: leave to others what was not handed to the pool.
        """
        least = State.HANDED if without_waiting else State.WAITING
        with self._lock:
            alive = [
                (held.tag, held.run)
                for held in self._held.values()
                if held.state >= least and (held.watch is None or held.watch() is not None)
            ]
        return alive + [(tag, "") for tag in (*self.outbox.tags(), *self.kept.tags())]

    def started(self, tags: Iterable[str]) -> list[tuple[str, str]]:
        """Return those of these tags that run, with what is told of their runs."""
        with self._lock:
            held = [self._held[tag] for tag in tags if tag in self._held]
        return [(one.tag, one.run) for one in held if one.run]

    def doubt(self) -> None:
        """Start nothing until the leases were renewed."""
        if self.keeper is not None:
            self.keeper.check_now()

    def forget(self, tags: Iterable[str]) -> int:
        """Note that these messages are another worker's now; returns how many were held here."""
        self.kept.forget(tags := list(tags))
        with self._lock:
            return sum(self._drop(tag) is not None for tag in tags)

    # -- settlers

    def detach(self, name: str) -> None:
        """Note that a channel settles no more; detaching twice is safe."""
        self.settlers.detach(name)
        if not self.settlers and not self.durable:
            self.dismiss()

    def dismiss(self) -> None:
        """Let nobody renew leases any more: the worker has stopped. Dismissing twice is safe."""
        self.is_stopping = lambda: False
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            keeper.stop()
