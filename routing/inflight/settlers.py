"""Who settles what ends: the channels of one database, each known by the name in its tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from routing.inflight.outbox import Settles


class Settlers:
    """The channels that settle; true while there are any."""

    def __init__(self) -> None:
        self._settlers: dict[str, Settles] = {}
        self._unheard: dict[str, Callable[[float], bool]] = {}
        #: Channels that are told the queue of whatever ends, which may have made room.
        self.await_room: dict[str, Callable[[str], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._settlers)

    def attach(
        self, name: str, settler: Settles, is_unheard: Callable[[float], bool] | None = None
    ) -> None:
        """Let a channel settle what ends; its name begins the tags of what it fetches.

        `is_unheard` tells whether the broker has left it without a reply for so many seconds.
        """
        self._settlers[name] = settler
        if is_unheard is not None:
            self._unheard[name] = is_unheard

    def detach(self, name: str) -> None:
        """Note that a channel settles no more; detaching twice is safe."""
        self._settlers.pop(name, None)
        self._unheard.pop(name, None)

    def is_unheard(self, seconds: float) -> bool:
        """Return whether the broker has left a channel without a reply for so long."""
        return any(is_unheard(seconds) for is_unheard in list(self._unheard.values()))

    def of(self, tag: str) -> Settles | None:
        """Return the settler of the channel that fetched this tag or, when it has gone, another."""
        name = tag.partition(":")[0]
        return self._settlers.get(name) or next(iter(self._settlers.values()), None)

    def made_room(self, queues: Iterable[str]) -> None:
        """Tell the channels that wait for it that more of these queues may be fetched."""
        for call in list(self.await_room.values()) if self.await_room else ():
            for queue in queues:
                call(queue)
