"""One message of a batch in the worker's parent process.

As for any task it is received, reserved, active, and ends; what differs is that its pool process
works for its neighbours too, and so is never killed for its sake. A cold shutdown, which stops them
all, ends it once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from celery.worker import state

from batching.message import Parcel, pack
from batching.pool.settle import Left
from routing.transport.message import EngineMessage
from routing.worker.followers import count_success, send_links
from routing.worker.interruption import holdings_of
from routing.worker.request import Request
from routing.worker.stopping import STOP
from routing.worker.traced import Answer

logger = logging.getLogger(__name__)


class Run(Protocol):
    """The run that an item shares with others."""

    def cut(self, signal: Any = None) -> bool:
        """End it, once for all its items; False where it runs to its end."""


class ItemRequest(Request):
    """A request whose run is shared with others."""

    #: Where its message goes when it is acknowledged with its batch; None for one by one.
    acks: list[Any] | None = None
    #: Why it has no key, or no cost: it fails alone, in the pool.
    unmeasured: str | None = None
    #: What it adds to the cost of its call.
    cost: float = 0.0
    #: Its batch, which the pool keeps while it runs.
    batch: weakref.ref[Run] | None = None

    @property
    def queue(self) -> str:
        """Name of the queue it came from."""
        return self.delivery_info.get("routing_key") or ""

    @property
    def size_bytes(self) -> int:
        """Length of its message's body."""
        return len(self.message.body or b"")

    @property
    def limits_of_call(self) -> tuple[float | None, float | None]:
        """The hard and soft limit of its call: those of its message, or the task's."""
        hard, soft = self.time_limits
        return hard or self.task.time_limit, soft or self.task.soft_time_limit

    @property
    def has_history(self) -> bool:
        """Whether the engine has written on it more than when it was pushed."""
        return len(getattr(self.message, "noted", None) or ()) > 1

    @property
    def rounds(self) -> int:
        """How often its call failed when nothing succeeded, through no fault of its own."""
        return self._noted("rounds")

    @property
    def company(self) -> int:
        """With how many it ran when its worker ended with it; 0 for never."""
        return self._noted("company")

    def _noted(self, name: str) -> int:
        noted = getattr(self.message, "noted", None) or {}
        return value if isinstance(value := noted.get(name), int) else 0

    def is_gone(self) -> bool:
        """Whether it must not run: it was revoked or has expired, and if so has been ended now."""
        if self.expires or state.revoked or state.revoked_stamps or self._already_revoked:
            return bool(self.revoked()) or self.is_void()
        return self.is_void()

    def start(self, pid: int, started_at: float) -> None:
        """Do what `on_accepted` does, but for the counters, which are the batch's business."""
        self.worker_pid = pid
        self.time_start = started_at
        state.requests[self.id] = self
        state.active_requests.add(self)
        self.send_event("task-started")

    def wait_again(self) -> None:
        """Wait for another call: its call has failed, and it has not ended."""
        state.active_requests.discard(self)
        self.time_start = self.worker_pid = None  # type: ignore[assignment]

    def end(self, ended: Answer | Left) -> None:
        """End it the way its run in the pool ended, also when that was cancelled too late."""
        self._already_cancelled = False
        if isinstance(ended, Left):
            self.requeue()
        elif ended[0]:
            self.on_success(ended)
        else:
            self._succeed(ended[1], ended[2])

    def _succeed(self, result: str, runtime: float | None) -> None:
        """Do what `on_success` does, without the costly note of ids that only tracers read."""
        if self.may_be_repeated():
            self.on_success((0, result, runtime))
            return
        state.task_ready(self)
        if self.task.acks_late:
            self.acknowledge()
        self.send_event("task-succeeded", result=result, runtime=runtime)

    def _end_when_stored(self, end: Callable[[], None]) -> None:
        # Not with its batch then, whose acknowledgements leave before that.
        self.acks = None
        super()._end_when_stored(end)

    def acknowledge(self) -> None:
        """Acknowledge its message; with those of its batch where the engine takes them together."""
        if self.acks is None:
            super().acknowledge()
        elif not self.acknowledged:
            self.acks.append(self.message)
            self.acknowledged = True

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - as in Celery
        """Send a task event, if anybody asked for task events."""
        if wants_task_events(self.eventer):
            super().send_event(type, **fields)

    def requeue(self) -> None:
        """Return its message to the broker: it has not ended."""
        state.task_ready(self)
        self.reject(requeue=True)

    def end_stored(self, stored: Any) -> None:
        """End it as the success that was stored before its pool process died."""
        logger.warning("Item %s[%s] had succeeded before its process was lost", self.name, self.id)
        self._already_cancelled = False
        # A batch sends after it has stored: what follows may not have been told.
        count_success(self.task, self._context, stored.get("result"))
        send_links(self.app, self._context, stored.get("result"))
        self.on_success((0, repr(stored.get("result")), None))

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Do not kill the process, which works for other items too; only say so."""
        if self.time_start is not None:
            logger.warning(
                "Item %s[%s] runs in a batch with others and is not terminated", self.name, self.id
            )

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the run of its batch in a cold shutdown, where the pool can.

        When the connection is lost the batch runs on, and is settled afterwards.
        """
        batch = None if self._is_ending else self.batch and self.batch()
        if STOP.told and batch and batch.cut(signal):
            self._announce_cancelled(emit_retry=emit_retry)

    def _success_was_stored(self) -> Any:
        """Tell that no success is stored: that was asked for the whole batch, in one read."""
        return False


def wants_task_events(eventer: Any) -> bool:
    """Whether a worker sends task events now (`-E`, or `celery control enable_events`)."""
    return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))


def packed(requests: Sequence[ItemRequest], outcomes: Mapping[ItemRequest, bytes]) -> list[Parcel]:
    """Return the parcels of a batch.

    Arguments:
        requests: its items, of one connection.
        outcomes: what of these has an outcome already, pickled.
    """
    if (holdings := holdings_of(requests[0].message)) is None:
        return [pack(request, outcomes.get(request)) for request in requests]
    now_ms = holdings.clock.now_ms()
    parcels = []
    for request in requests:
        held, age = holdings.get(request.message.delivery_tag), None
        if held is not None and held.at_ms:
            age = max(0.0, (now_ms - held.at_ms) / 1000)
        parcels.append(pack(request, outcomes.get(request), age))
    return parcels


def end_each(requests: Sequence[ItemRequest], end: Callable[[ItemRequest], None]) -> None:
    """End these; what one of the endings raises is not the neighbours' business."""
    for request in requests:
        try:
            end(request)
        except Exception:
            logger.exception("Item %s could not be updated", request)


@contextmanager
def collect_acks(requests: Sequence[ItemRequest]) -> Iterator[None]:
    """Acknowledge what ends within in one step; also when no loop runs any more.

    On a transport that is not the engine's, each is left to itself.
    """
    messages: list[EngineMessage] = []
    if all(isinstance(request.message, EngineMessage) for request in requests):
        for request in requests:
            request.acks = messages
    try:
        yield
    finally:
        for request in requests:
            request.acks = None
        if messages:
            _ack_all(messages)


def _ack_all(messages: Sequence[EngineMessage]) -> None:
    """End the messages of one batch in one step; they came over one channel."""
    holdings = messages[0].link.holdings
    ended = []
    for message in messages:
        if (death := message.death) is not None:
            holdings.bury(message.delivery_tag, death)
        else:
            ended.append((message.delivery_tag, message.ending or "done"))
    if ended:
        holdings.end_all(ended)
