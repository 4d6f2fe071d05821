"""A batch and its items: what the user's function gets, and how each item ends.

A `Batch` is a sequence of `Item`s of one task, one queue and one key, in the order in which they
were sent. The function gives outcomes by `item.done`, `item.fail`, `item.retry` and `item.dead`, or
returns one result per item; an item that it says nothing about is done. An outcome is a frozen
value; what it means to Celery is decided later, when each item is settled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from batching.errors import InvalidOutcome, OutcomeTwice
from batching.outcomes import Dead, Done, Failed, Outcome, Retried
from routing.worker.failure import stand_in

T = TypeVar("T")

_NO_HEADERS: Mapping[str, Any] = MappingProxyType({})


class Item(Generic[T]):
    """One message of a batch.

    `value` is the model instance when the task has a model, the only argument when there is exactly
    one, and `(args, kwargs)` otherwise. `attempt` counts from 1. `headers` are the sender's own.
    """

    __slots__ = ("_twice", "args", "attempt", "headers", "id", "kwargs", "outcome", "value")

    def __init__(
        self,
        id: str,  # noqa: A002 - the name it has in Celery
        value: T,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        attempt: int = 1,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.value = value
        self.args = args
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        self.attempt = attempt
        self.headers = _NO_HEADERS if headers is None else headers
        self.outcome: Outcome | None = None
        self._twice: OutcomeTwice | None = None

    def done(self, result: Any = None) -> None:
        """End the item as succeeded, with `result` as its task's result."""
        self._end(Done(result))

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
        self.outcome = self._twice = None

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is not None:
            self._twice = OutcomeTwice(self.id, repr(self.outcome), repr(outcome))
            raise self._twice
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"<Item {self.id} {self.value!r} {self.outcome or 'open'}>"


class Batch(Sequence[Item[T]]):
    """The items of one call, in order; `values` for code that needs no outcomes."""

    __slots__ = ("_items",)

    def __init__(self, items: Sequence[Item[T]]) -> None:
        self._items = tuple(items)

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
        return iter(self._items)

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
