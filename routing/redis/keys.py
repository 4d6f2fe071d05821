"""Names of the keys that the engine keeps on the server, whole, in one place.

kombu's own keys (ready lists, ``unacked``, ``unacked_index``) keep their names, so that stock tools
find them. Everything of ours starts with ``celeriac:``. kombu prefixes only the first key of a
script call, so the scripts get full names from here and run through a client that adds nothing.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from routing.topology.names import dead_queue, dropped_queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The key names of one broker database.

    Arguments:
        prefix: kombu's ``global_keyprefix``, put before every name.
        unacked: kombu's hash of unacknowledged messages, tag -> record.
        unacked_index: kombu's sorted set of tags, scored with the time of the last renewal.
        steps: kombu's ``priority_steps``; a queue has one ready list for each.
        separator: kombu's ``sep``, between a queue's name and its priority step.
    """

    prefix: str = ""
    unacked: str = "unacked"
    unacked_index: str = "unacked_index"
    steps: Sequence[int] = (0, 3, 6, 9)
    separator: str = "\x06\x16"

    def ready(self, queue: str, priority: int = 0) -> str:
        """Return the list that a message of this priority waits in."""
        step = self.steps[max(bisect(self.steps, priority) - 1, 0)]
        return f"{self.prefix}{queue}{self.separator}{step}" if step else f"{self.prefix}{queue}"

    def ready_lists(self, queue: str) -> list[str]:
        """Return all ready lists of a queue, in the order in which they are emptied."""
        # None twice, as by steps that repeat: a fetch would read its messages twice.
        return [self.ready(queue, step) for step in dict.fromkeys(self.steps)]

    def bell(self, queue: str) -> str:
        """Return the list whose one token wakes a waiting worker."""
        return f"{self.prefix}celeriac:bell:{queue}"

    def own_bell(self, worker: str) -> str:
        """Return the bell that only one channel listens to."""
        return f"{self.prefix}celeriac:own:{worker}"

    def delayed(self, queue: str) -> str:
        """Return the sorted set of a queue's delayed messages, scored with when they are due."""
        return f"{self.prefix}celeriac:delayed:{queue}"

    def delayed_payloads(self, queue: str) -> str:
        """Return the hash of a queue's delayed messages, member of the set -> list and payload."""
        return f"{self.prefix}celeriac:delayed_messages:{queue}"

    def delayed_count(self) -> str:
        """Return the number that keeps equal delayed messages apart."""
        return f"{self.prefix}celeriac:delayed_count"

    def dead(self, queue: str) -> str:
        """Return the list of a queue's dead letters, which kombu takes for an ordinary queue."""
        return self.ready(dead_queue(queue))

    def dropped(self, queue: str) -> str:
        """Return the list of what a queue's bound dropped."""
        return self.ready(dropped_queue(queue))

    def claim(self, queue: str, *, delayed: bool = False) -> str:
        """Return the hash of who waits for room in a full queue, and how much is kept for it."""
        kind = "claim_delayed" if delayed else "claim"
        return f"{self.prefix}celeriac:{kind}:{queue}"

    def ledger(self, queue: str) -> str:
        """Return the hash of a queue's counters."""
        return f"{self.prefix}celeriac:ledger:{queue}"

    def records(self) -> list[str]:
        """Return the keys that hold unacknowledged messages, as every script takes them first."""
        return [
            self.prefix + self.unacked,
            self.prefix + self.unacked_index,
            f"{self.prefix}celeriac:leases",
            f"{self.prefix}celeriac:origins",
            f"{self.prefix}celeriac:started",
        ]

    def workers(self) -> str:
        """Return the hash first part of a worker's tags -> the worker's host name."""
        return f"{self.prefix}celeriac:workers"

    def reclaiming(self) -> str:
        """Return the hash of when leases were last looked at, and may be taken again."""
        return f"{self.prefix}celeriac:reclaim"

    def settings(self) -> str:
        """Return the hash queue -> what was set for it at run time, as JSON."""
        return f"{self.prefix}celeriac:settings"

    def settings_version(self) -> str:
        """Return the number that changes whenever a setting does."""
        return f"{self.prefix}celeriac:settings:version"

    def settings_log(self) -> str:
        """Return the list of the last changes of settings, the newest first."""
        return f"{self.prefix}celeriac:settings:log"

    def draining(self, queue: str) -> str:
        """Return the flag of a queue that takes no new work."""
        return f"{self.prefix}celeriac:draining:{queue}"

    def consumers(self, queue: str) -> str:
        """Return the sorted set of the workers that consume a queue, scored with their expiry."""
        return f"{self.prefix}celeriac:consumers:{queue}"

    def gate(self, name: str) -> str:
        """Return the hash of the slots of a gate that are held -> messages that hold each."""
        return f"{self.prefix}celeriac:gate:{name}"

    def queue_gate(self, queue: str) -> str:
        """Return the same of a queue's own gate."""
        return self.gate(f"queue:{queue}")

    def rate(self, name: str) -> str:
        """Return the time in ms at which the next start of a gate is due."""
        return f"{self.prefix}celeriac:rate:{name}"

    def queue_rate(self, queue: str) -> str:
        """Return the same of a queue's own gate."""
        return self.rate(f"queue:{queue}")

    def gated(self) -> str:
        """Return the hash of what each tag holds of gates."""
        return f"{self.prefix}celeriac:gated"

    def blocked(self, queue: str) -> str:
        """Return the sorted set of the gates that messages of a queue are parked for."""
        return f"{self.prefix}celeriac:blocked:{queue}"

    def parked(self) -> str:
        """Return what begins the names of the lists of parked messages."""
        return f"{self.prefix}celeriac:parked:"

    def pace(self, queue: str) -> str:
        """Return the hash of how much of a queue had ended at two moments."""
        return f"{self.prefix}celeriac:pace:{queue}"
