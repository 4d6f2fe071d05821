"""Takes what has ended to the server: endings, dead letters, and messages to requeue.

Each is taken from the outbox for one call, and put back when that may not have arrived: doing any
of them twice changes nothing. So any thread may do it, with a client of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from routing.inflight.outbox import Taken
from routing.redis.faults import is_lost
from routing.redis.values import Fetch, Settlement
from routing.transport.link import Link

T = TypeVar("T")


class Carrier:
    """Carries what waits in the outbox of one database.

    Arguments:
        link: the database, with the client to use.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._outbox = link.holdings.outbox

    def carry_all(self) -> None:
        """Carry everything, and wait for it.

        Raises:
            Exception: the server is away, or refuses; what was not carried is kept.
        """
        fault: Exception | None = None
        try:
            self.bury()
        except Exception as error:
            if is_lost(error):
                raise
            fault = error  # a dead letter that is refused holds up none of the others
        while (settlement := self._outbox.take_settlement()).endings:
            self._settle(settlement)
        self.requeue()
        if fault is not None:
            raise fault

    def _settle(self, settlement: Settlement) -> None:
        try:
            self._link.commands.exchange(self._link.client, settlement, Fetch("", ()))
        except BaseException:
            self._outbox.restore_settlement(settlement)
            raise
        finally:
            self._has_ended(settlement)

    def bury(self) -> None:
        """Carry what became dead letters."""
        if not (burials := self._outbox.take_burials()):
            return
        kept, fault = _each(burials.items(), self._link.client, self._link.commands.bury)
        if fault is not None:
            self._outbox.restore_burials(dict(kept))
        self._has_ended(burials)
        if fault is not None:
            raise fault

    def requeue(self) -> None:
        """Carry what is requeued."""
        if not (returns := self._outbox.take_returns()):
            return
        kept, fault = _each(returns, self._link.client, self._link.commands.requeue)
        if fault is not None:
            self._outbox.restore_returns(kept)
        self._has_ended(returns)
        if fault is not None:
            raise fault

    def carry_again(self, seconds: float) -> None:
        """Carry what calls have carried for so long: a greenlet that computes may hold them up.

        Raises:
            Exception: the server is away, or refuses; those calls will see to it.
        """
        for taken in self._outbox.overdue(seconds):
            fault: BaseException | None = None
            match taken:
                case Settlement():
                    self._link.commands.exchange(self._link.client, taken, Fetch("", ()))
                case dict():
                    _, fault = _each(taken.items(), self._link.client, self._link.commands.bury)
                case _:
                    _, fault = _each(taken, self._link.client, self._link.commands.requeue)
            if fault is not None:
                raise fault
            self._has_ended(taken)

    def _has_ended(self, taken: Taken) -> None:
        """Note that the call has ended which carried this."""
        self._link.holdings.settlers.made_room(self._outbox.arrived(taken))


def _each(
    by_queue: Iterable[tuple[str, list[T]]], client: Any, run: Callable[..., Any]
) -> tuple[Sequence[tuple[str, list[T]]], BaseException | None]:
    """Run a command for each queue; return what it did not do, and why.

    What the server refuses of one queue holds up no other; a lost connection ends it.
    """
    kept: list[tuple[str, list[T]]] = []
    fault: BaseException | None = None
    for queue, entries in by_queue:
        try:
            if fault is not None and (is_lost(fault) or not isinstance(fault, Exception)):
                raise fault
            run(client, queue, entries)
        except BaseException as error:
            kept.append((queue, entries))
            fault = error
    return kept, fault
