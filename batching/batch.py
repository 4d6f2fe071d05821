"""A batch and its items: what the user's function gets, and how each item ends.

A `Batch` is a sequence of `Item`s of one task, one queue and one key, in the order in which they
were sent. The function gives outcomes by `item.done`, `item.fail`, `item.retry`, `item.dead` and
`item.replace`, or returns one result per item, in order or by id, exceptions among them; an item
that it says nothing about is done. An outcome is a frozen value; what it means to Celery is decided
later, when each item is settled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from celery.canvas import Signature

from batching.errors import InvalidOutcome, OutcomeTwice
from batching.message import CallInfo
from batching.outcomes import DONE, Dead, Done, Failed, Outcome, Replaced, Retried
from routing.worker.failure import stand_in

T = TypeVar("T")

_NO_HEADERS: Mapping[str, Any] = MappingProxyType({})

DIRECT = CallInfo()


class Item(Generic[T]):
    """One message of a batch.

    `value` is the model instance when the task has a model, the only argument when there is exactly
    one, and `(args, kwargs)` otherwise. `attempt` counts from 1. `headers` are the sender's own.
    `age` is how many seconds ago it was sent, when its call began; None where that is not known.
    """

    __slots__ = (
        "_request",
        "_twice",
        "age",
        "args",
        "attempt",
        "headers",
        "id",
        "kwargs",
        "noted",
        "outcome",
        "place",
        "value",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - the name it has in Celery
        value: T,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        attempt: int = 1,
        headers: Mapping[str, Any] | None = None,
        request: Mapping[str, Any] = _NO_HEADERS,
        age: float | None = None,
    ) -> None:
        self.id = id
        self.value = value
        self.args = args
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        self.attempt = attempt
        self.headers = _NO_HEADERS if headers is None else headers
        self.age = age
        self._request = request
        self.outcome: Outcome | None = None
        #: Notes its outcome as it is given, by its place in the call: so it outlives the process.
        self.noted: Callable[[int, Outcome], None] | None = None
        self.place = 0
        self._twice: OutcomeTwice | None = None

    @property
    def priority(self) -> int | None:
        """The priority that it was sent with; None for none."""
        return (self._request.get("delivery_info") or {}).get("priority")

    @property
    def redelivered(self) -> bool:
        """Whether it may have run before, in part or in full."""
        return bool((self._request.get("delivery_info") or {}).get("redelivered"))

    @property
    def stamps(self) -> Mapping[str, Any]:
        """Its stamps (`visitor` and headers of `stamp()`), by name."""
        return self._request.get("stamps") or _NO_HEADERS

    def done(self, result: Any = None) -> None:
        """End the item as succeeded, with `result` as its task's result."""
        self._end(DONE if result is None else Done(result))

    def fail(self, error: BaseException) -> None:
        """End the item as failed with `error`, as if a task of its own had raised it.

        So `autoretry_for` retries it, `Ignore` and `Reject` mean what they mean in Celery, and
        anything else becomes its task's failure.
        """
        checked = _exception(error, "fail")
        self._end(Failed(checked, error.__traceback__))

    def retry(self, countdown: float | None = None, exc: Exception | None = None) -> None:
        """Send the item again after `countdown` seconds, within the task's `max_retries`.

        Without a countdown, the task's `retry_backoff` or `default_retry_delay` decides. When the
        retries are spent it fails with `exc`, or with `MaxRetriesExceededError`.
        """
        if countdown is not None and not _is_seconds(countdown):
            raise InvalidOutcome(f"retry: countdown must be seconds, at least 0, got {countdown!r}")
        self._end(Retried(countdown, None if exc is None else _exception(exc, "retry")))

    def dead(self, reason: str) -> None:
        """End the item for good: it fails with `DeadLetter(reason)`, whatever `autoretry_for` says.

        Its message is kept in the queue's dead letters, as that of any item which fails for good.
        """
        if not isinstance(reason, str):
            raise InvalidOutcome(f"dead: expected a reason in words, got {reason!r}")
        self._end(Dead(reason))

    def replace(self, sig: Signature) -> None:
        """Let a signature take the item's place: it gets its id, its links and its canvas.

        As `self.replace(sig)` does in a plain task.
        """
        if not isinstance(sig, Signature):
            raise InvalidOutcome(f"replace: expected a signature, such as add.s(2), got {sig!r}")
        self._end(Replaced(sig))

    def returned(self, result: Any) -> None:
        """End the item by its place in what the function has returned.

        An exception is its failure. None says nothing about an item that has its outcome; anything
        else is a second one, which fails it.
        """
        outcome: Outcome = Done(result)
        if isinstance(result, BaseException):
            try:
                outcome = Failed(_exception(result, "a result"), result.__traceback__)
            except InvalidOutcome as error:
                outcome = Failed(error)
        if self.outcome is None:
            self.outcome = outcome
        elif result is not None:
            self._note_twice(outcome)

    def conclude(self, outcome: Outcome) -> None:
        """Give an outcome to an item that the function said nothing about."""
        if self.outcome is None:
            self.outcome = outcome

    @property
    def twice(self) -> OutcomeTwice | None:
        """The error of a second outcome, kept because the function may have swallowed it."""
        return self._twice

    def forget(self) -> None:
        """Let go of the outcome once it is settled, and of all that its error holds."""
        self.outcome = self._twice = self.noted = None

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            raise self._note_twice(outcome)
        self.outcome = outcome
        if self.noted is not None:
            self.noted(self.place, outcome)

    def _note_twice(self, outcome: Outcome) -> OutcomeTwice:
        self._twice = OutcomeTwice(self.id, repr(self.outcome), repr(outcome))
        return self._twice

    def __repr__(self) -> str:
        return f"<Item {self.id} {self.value!r} {self.outcome or 'open'}>"


class Batch(Sequence[Item[T]]):
    """The items of one call, in order; `values` for code that needs no outcomes.

    Attributes:
        id: the call's own; that of another call of the same items is another.
        queue: where the items came from; empty for a direct call.
        reason: why it is made now: ``count``, ``bytes``, ``cost``, ``keys``, ``wait`` or ``idle``
            by the bound that was reached, ``urgent`` or ``alone`` for what does not wait,
            ``search`` for a part of a call that has failed, ``direct`` without a worker.
        deadline: when its time limit ends it, by `time.time`; None for never.
    """

    __slots__ = ("_items", "_key", "_starts", "deadline", "id", "queue", "raised", "reason")

    def __init__(
        self,
        items: Sequence[Item[T]],
        info: CallInfo = DIRECT,
        key: Callable[[], Hashable] = lambda: None,
        starts: Callable[[int], None] | None = None,
    ) -> None:
        self._items = tuple(items)
        self.id, self.queue, self.reason = info.id, info.queue, info.reason
        limit = info.limit_seconds
        self.deadline = None if limit is None else time.time() + limit
        self._key = key
        #: Notes the item that the function has come to, by its place in the call.
        self._starts = starts
        #: What the function has raised, whatever those around it made of that.
        self.raised: BaseException | None = None

    @property
    def key(self) -> Hashable:
        """What its items have in common by the task's `key`; None without one."""
        return self._key()

    @property
    def values(self) -> list[T]:
        """The value of each item, in order."""
        return [item.value for item in self._items]

    @overload
    def __getitem__(self, index: int) -> Item[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item[T]]: ...
    def __getitem__(self, index: int | slice) -> Item[T] | Sequence[Item[T]]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item[T]]:
        return iter(self._items) if self._starts is None else self._one_by_one(self._starts)

    def _one_by_one(self, starts: Callable[[int], None]) -> Iterator[Item[T]]:
        for item in self._items:
            starts(item.place)
            yield item
        starts(-1)

    def __repr__(self) -> str:
        return f"<Batch of {len(self._items)}>"


def _exception(error: object, method: str) -> Exception:
    if isinstance(error, Exception):
        return error
    if isinstance(error, BaseException) and not isinstance(error, (SystemExit, KeyboardInterrupt)):
        # Such as `gevent.Timeout`: the item's own failure, which Celery can trace by this.
        return stand_in(error)
    raise InvalidOutcome(
        f"{method}: expected an exception instance, such as ValueError('...'), got {error!r}"
    )


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
