"""What may be here in a moment, as far as a fetch loop knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from routing.inflight.holdings import Holdings
from routing.inflight.sightings import Sightings
from routing.transport.allowances import Allowances, Consumed
from routing.transport.inbox import Inbox


class Outlook:
    """The outlook of one channel.

    Arguments:
        consumed: the queues.
        holdings: what the process holds of them.
        inbox: what has come and was not delivered yet.
        allowances: what may be fetched.
        sightings: what is known about the queues at the broker.
        asked: returns the queues that an exchange asks which is out.
    """

    def __init__(
        self,
        consumed: Consumed,
        holdings: Holdings,
        *,
        inbox: Inbox,
        allowances: Allowances,
        sightings: Sightings,
        asked: Callable[[], Sequence[str]],
    ) -> None:
        self._consumed, self._holdings, self._inbox = consumed, holdings, inbox
        self._allowances, self._sightings, self._asked = allowances, sightings, asked

    def coming(self) -> Sequence[str]:
        """Return the queues of which something may be here in a moment.

        Those are what waits for delivery, what an exchange asks that is out or what the next one
        asks of what is known to wait, or all of them where nobody could hear.
        """
        sightings, queues = self._sightings, self._consumed.engine_queues
        if sightings.is_stale:
            return queues
        if not (asked := self._asked()):
            open_ones = (one.queue for one in self._allowances.all() if one.credit > 0)
            asked = [queue for queue in open_ones if sightings.known(queue)]
        return [queue for queue in queues if queue in asked or self._inbox.waiting(queue)]

    def backlog(self, queue: str) -> bool:
        """Return whether more of this queue is on its way, or known to wait at the broker."""
        if self._inbox.waiting(queue) > 0 or self._sightings.left(queue) > 0:
            return True
        may_come = queue in self._asked() or self._holdings.credit.of(queue) > 0
        return self._sightings.is_stale and may_come
