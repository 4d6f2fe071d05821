"""What counts against the prefetch of each queue: held messages, and those that were asked for.

Not safe by itself: whoever changes it holds the lock of the `Holdings`.
"""

from __future__ import annotations

from collections.abc import Sequence

from routing.inflight.fetch_policy import byte_allowances
from routing.inflight.prefetch import Prefetch
from routing.redis.values import Fetch


class Credit:
    """Counts of unfinished messages, and of their bytes, by queue.

    Arguments:
        prefetch: how many each queue may have.
        max_bytes: bytes of all of them together.
    """

    def __init__(self, prefetch: Prefetch, *, max_bytes: int) -> None:
        self.prefetch = prefetch
        self._max_bytes = max_bytes
        #: Messages that no longer count, since the process began.
        self.freed = 0
        self._held: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def of(self, queue: str) -> int:
        """Return how many more messages may be fetched from a queue now."""
        return self.prefetch.of(queue) - self._held.get(queue, 0) - self.asked(queue)

    def asked(self, queue: str) -> int:
        """Return how many messages of a queue a fetch on its way has asked for."""
        return self._asked.get(queue, 0)

    def held(self, queue: str) -> int:
        """Return how many messages of a queue are held."""
        return self._held.get(queue, 0)

    def held_bytes(self, queue: str) -> int:
        """Return how many bytes of a queue's messages are held."""
        return self._bytes.get(queue, 0)

    def byte_allowances(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many bytes may be fetched from each of these queues, the consumed ones."""
        return byte_allowances(dict(self._bytes), queues, total=self._max_bytes)

    def queues(self) -> list[str]:
        """Return the queues that something was held of."""
        return list(self._held)

    def ask(self, fetch: Fetch) -> None:
        """Set aside what a fetch asks for."""
        for queue, count in fetch.asked:
            self._asked[queue] = self._asked.get(queue, 0) + count

    def release(self, fetch: Fetch) -> None:
        """Take that back: the fetch was answered, refused or lost."""
        for queue, count in fetch.asked:
            self._asked[queue] -= count

    def take(self, queue: str, size_bytes: int) -> None:
        """Count a message that has come."""
        self._held[queue] = self._held.get(queue, 0) + 1
        self._bytes[queue] = self._bytes.get(queue, 0) + size_bytes

    def free(self, queue: str, size_bytes: int) -> None:
        """Count it no more."""
        self._held[queue] -= 1
        self._bytes[queue] -= size_bytes
        self.freed += 1
