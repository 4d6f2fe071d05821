"""Where every message must be, in plain Python: what the scripts are compared with.

It knows ids instead of payloads, lists instead of keys, and has no clock: whoever plays with it
says when a delay is over or a lease has run out. Only the policies are here twice, so that a
mistake in a script is not repeated by its test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from routing.topology.model import Topology
from routing.topology.names import dropped_queue
from routing.topology.queue import QueueConfig

#: The priority steps that messages are pushed with; the first is taken first.
STEPS = (0, 6)


@dataclass
class Delayed:
    """One delayed message; `due` only orders it among the others."""

    due: float
    message: str
    step: int
    over: bool = False
    #: It was given back, and goes to the front.
    returned: bool = False


@dataclass
class Queue:
    """One queue; what a bound dropped is a queue too, one that counts nothing."""

    config: QueueConfig
    counts: bool = True
    ready: dict[int, list[str]] = field(default_factory=lambda: {step: [] for step in STEPS})
    delayed: list[Delayed] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)

    @property
    def waiting(self) -> list[str]:
        """What waits, in the order in which it is taken."""
        return [message for step in STEPS for message in self.ready[step]]

    def count(self, name: str, number: int) -> None:
        """Add to a counter."""
        if self.counts and number:
            self.counters[name] += number

    def bury(self, messages: Sequence[str]) -> int:
        """Add dead letters; returns how many of the oldest made room."""
        self.dead += messages
        self.count("dead", len(messages))
        over = max(0, len(self.dead) - self.config.max_dead)
        self.dead = self.dead[over:]
        self.count("dead_trimmed", over)
        return over


@dataclass
class Held:
    """One unacknowledged message."""

    message: str
    queue: str
    step: int
    started: bool = False
    expired: bool = False


class Reference:
    """All queues of a table, and what workers hold of them."""

    def __init__(self, topology: Topology) -> None:
        self.queues = {name: Queue(config) for name, config in topology.queues.items()}
        self.queues |= {
            dropped_queue(name): Queue(topology.queue(dropped_queue(name)), counts=False)
            for name in topology.queues
        }
        self.held: dict[str, Held] = {}
        self.deliveries: Counter[str] = Counter()
        #: Messages that may have run in part.
        self.redelivered: set[str] = set()
        #: Bytes of each message as it is stored; whoever plays keeps it right.
        self.sizes: dict[str, int] = {}

    # -- coming

    def push(self, name: str, new: Sequence[str], step: int, terms: str) -> tuple[int, int]:
        """Append what the policy lets in; returns (accepted, dropped)."""
        queue = self.queues[name]
        policy = queue.config.overflow
        fits = self._fitting(queue, new, beside=queue.waiting)
        if terms == "exempt":
            queue.count("overshoot", len(new) - fits)
            return self._enter(queue, step, new), 0
        if policy == "drop_oldest":
            kept = list(new[len(new) - self._fitting(queue, new[::-1]) :])
            gone = self._make_room(queue, kept) + list(new[: len(new) - len(kept)])
            self._enter(queue, step, kept)
            queue.count("accepted", len(new) - len(kept))
            return len(new), self._drop(name, gone)
        if terms == "none" or (terms == "whole" and fits < len(new)):
            fits = 0
        self._enter(queue, step, new[:fits])
        return self._overflow(name, new, fits, terms)

    def delay(self, name: str, new: Sequence[Delayed], terms: str) -> tuple[int, int]:
        """Delay what the policy lets in; returns (accepted, dropped)."""
        queue = self.queues[name]
        limit = queue.config.max_delayed or 10**9
        fits = max(0, min(len(new), limit - len(queue.delayed)))
        ids = [one.message for one in new]
        if terms == "exempt":
            queue.count("overshoot", len(new) - fits)
            fits = len(new)
        elif queue.config.overflow == "drop_oldest":
            kept = list(new[max(0, len(new) - limit) :])
            leaving = max(0, len(queue.delayed) + len(kept) - limit)
            gone = [one.message for one in queue.delayed[:leaving]] + ids[: len(new) - len(kept)]
            queue.delayed = sorted(queue.delayed[leaving:] + kept, key=lambda one: one.due)
            queue.count("accepted", len(new))
            return len(new), self._drop(name, gone)
        elif terms == "none" or (terms == "whole" and fits < len(new)):
            fits = 0
        queue.delayed = sorted([*queue.delayed, *new[:fits]], key=lambda one: one.due)
        queue.count("accepted", fits)
        return self._overflow(name, ids, fits, terms)

    def _fitting(self, queue: Queue, new: Sequence[str], beside: Iterable[str] = ()) -> int:
        beside = list(beside)
        length, size = len(beside), sum(self.sizes[message] for message in beside)
        for n, message in enumerate(new):
            length, size = length + 1, size + self.sizes[message]
            if length > (queue.config.max_length or length) or size > (
                queue.config.max_bytes or size
            ):
                return n
        return len(new)

    def _make_room(self, queue: Queue, new: Sequence[str]) -> list[str]:
        """Take the oldest of the least urgent, until what is new fits."""
        gone = []
        while queue.waiting and self._fitting(queue, new, beside=queue.waiting) < len(new):
            step = max(step for step in STEPS if queue.ready[step])
            gone.append(queue.ready[step].pop(0))
        return gone

    def _enter(self, queue: Queue, step: int, new: Sequence[str]) -> int:
        queue.ready[step] += new
        queue.count("accepted", len(new))
        return len(new)

    def _overflow(self, name: str, new: Sequence[str], fits: int, terms: str) -> tuple[int, int]:
        queue, over = self.queues[name], list(new[fits:])
        match queue.config.overflow:
            case "reject":
                queue.count("refused", len(over))
                return fits, 0
            case "block":
                queue.count("refused", len(over) if terms == "none" else 0)
                return fits, 0
            case "dead_letter":
                queue.count("accepted", len(over))
                queue.bury(over)
                self.queues[dropped_queue(name)].ready[STEPS[0]] += over
                return len(new), len(over)
        queue.count("accepted", len(over))
        return len(new), self._drop(name, over)

    def _drop(self, name: str, gone: Sequence[str]) -> int:
        self.queues[name].count("dropped", len(gone))
        self.queues[dropped_queue(name)].ready[STEPS[0]] += gone
        return len(gone)

    # -- being held

    def fetch(self, name: str, credit: int, tags: str) -> list[str]:
        """Take what is due or waits under the tags `tags` + 1, 2, 3 ...; returns the messages."""
        queue = self.queues[name]
        over = [one for one in queue.delayed if one.over]
        for one in over:
            if not one.returned:
                queue.ready[one.step].append(one.message)
                self.redelivered.discard(one.message)
                self.deliveries.pop(one.message, None)
        for one in reversed(over):
            if one.returned:
                queue.ready[one.step].insert(0, one.message)
        queue.delayed = [one for one in queue.delayed if not one.over]
        taken = [(message, step) for step in STEPS for message in queue.ready[step]][:credit]
        for n, (message, step) in enumerate(taken, start=1):
            queue.ready[step].pop(0)
            self.held[f"{tags}{n}"] = Held(message, name, step)
        queue.count("unacked", len(taken))
        return [message for message, _ in taken]

    def _leave(self, tag: str) -> Held | None:
        held = self.held.pop(tag, None)
        if held is not None:
            self.queues[held.queue].count("unacked", -1)
        return held

    def settle(self, tags: Iterable[str], ending: str) -> None:
        """End messages."""
        for tag in tags:
            if held := self._leave(tag):
                self.queues[held.queue].count(ending, 1)
                self.deliveries.pop(held.message, None)

    def bury(self, name: str, tags: Iterable[str]) -> tuple[int, int]:
        """End messages as dead letters; returns (buried, trimmed)."""
        messages = [held.message for held in map(self._leave, tags) if held]
        for message in messages:
            self.deliveries.pop(message, None)
        return len(messages), self.queues[name].bury(messages)

    def requeue(self, tags: Sequence[str], mark: str) -> int:
        """Return messages to the front, given in fetch order; returns how many."""
        back = [held for held in map(self._leave, tags) if held]
        for held in back:
            self.deliveries[held.message] += mark == "counted"
        self._to_front(back, "given_back", redelivered=bool(mark))
        return len(back)

    def give_back_later(self, tags: Sequence[str], dues: Sequence[float]) -> int:
        """Delay messages that are held, and come back to the front; returns how many."""
        back = [
            (held, due) for tag, due in zip(tags, dues, strict=True) if (held := self._leave(tag))
        ]
        for held, due in back:
            queue = self.queues[held.queue]
            later = Delayed(due, held.message, held.step, returned=True)
            queue.delayed = sorted([*queue.delayed, later], key=lambda one: one.due)
            queue.count("given_back", 1)
            self.redelivered.add(held.message)
        return len(back)

    def reclaim(self, tags: Sequence[str]) -> int:
        """Return messages whose lease ran out, given in fetch order; returns how many."""
        back = [held for held in map(self._leave, tags) if held]
        for held in back:
            self.deliveries[held.message] += held.started
        self._to_front(back, "reclaimed", redelivered=True)
        return len(back)

    def _to_front(self, back: Sequence[Held], counter: str, *, redelivered: bool) -> None:
        for held in reversed(back):
            queue = self.queues[held.queue]
            queue.ready[held.step].insert(0, held.message)
            queue.count(counter, 1)
            if redelivered and queue.counts:
                self.redelivered.add(held.message)

    def postpone(self, tag: str, due: float) -> bool:
        """Delay a message that is held; False when it is not."""
        if (held := self._leave(tag)) is None:
            return False
        queue = self.queues[held.queue]
        queue.delayed = sorted(
            [*queue.delayed, Delayed(due, held.message, held.step)], key=lambda one: one.due
        )
        return True

    # -- the whole queue

    def purge(self, name: str) -> int:
        """Drop what waits and what is delayed; returns how many that were."""
        queue = self.queues[name]
        gone = [*queue.waiting, *(one.message for one in queue.delayed)]
        for message in gone:
            self.deliveries.pop(message, None)
        queue.ready = {step: [] for step in STEPS}
        queue.delayed = []
        queue.count("purged", len(gone))
        return len(gone)

    def revive(self, name: str, letters: Sequence[tuple[str, int]], *, to: str) -> None:
        """Bring dead letters back to the end of a queue, given as (message, step)."""
        queue = self.queues[to]
        for message, step in letters:
            self.queues[name].dead.remove(message)
            self.redelivered.discard(message)
            queue.ready[step].append(message)
        queue.count("replayed", len(letters))
        over = len(queue.waiting) - (queue.config.max_length or 10**9)
        queue.count("overshoot", max(0, min(over, len(letters))))

    def forget(self, name: str, messages: Iterable[str]) -> None:
        """Drop dead letters for good."""
        for message in messages:
            self.queues[name].dead.remove(message)
            self.queues[name].count("dead_trimmed", 1)
