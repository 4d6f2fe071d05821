"""Everything that batching raises, as one tree.

    BatchError
    ├── InvalidOption      a task was defined with an option that cannot work      (ValueError)
    ├── InvalidItem        an item does not fit the task's model; it fails alone   (ValueError)
    ├── InvalidOutcome     an outcome's method was given what it cannot use        (TypeError)
    ├── OutcomeTwice       an item was given a second outcome
    ├── ResultCountError   as many results as items were expected
    ├── ResultIdsError     the function returned results by id, and not for each item
    ├── ResultTypeError    the function returned something without results         (TypeError)
    └── NotSettled         the outcomes could not be stored; the items come back

`InvalidItem` and `OutcomeTwice` are one item's own failure. `ResultCountError`, `ResultIdsError`
and `ResultTypeError` are errors of the whole batch: nobody can say which item they belong to, so
every item of the call that had no outcome before fails or retries with them. All of them survive
pickle and the JSON of a result backend.
"""

from __future__ import annotations

from collections.abc import Sequence


class BatchError(Exception):
    """Base of all errors of this package."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class InvalidOption(BatchError, ValueError):
    """A batch task was defined with an option that cannot work. Correct the task's definition."""

    def __init__(self, task: str, option: str, problem: str) -> None:
        super().__init__(task, option, problem)
        self.task = task
        self.option = option
        self.problem = problem

    def __str__(self) -> str:
        return f"batch task {self.task!r}: {self.option} {self.problem}"


class InvalidItem(BatchError, ValueError):
    """The arguments of an item do not fit the task's model. Correct the sender, send it again."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"field {self.field!r}: {self.reason}"


class InvalidOutcome(BatchError, TypeError):
    """`item.fail` and `item.retry` take exception instances, `item.retry` countdowns of at least 0,
    and `item.dead` a reason in words."""


class OutcomeTwice(BatchError):
    """An item was given a second outcome. Give each item one: done, fail, retry, or a result."""

    def __init__(self, item_id: str, first: str, second: str) -> None:
        super().__init__(item_id, first, second)
        self.item_id = item_id
        self.first = first
        self.second = second

    def __str__(self) -> str:
        return (
            f"item {self.item_id} already has the outcome {self.first}, and was given {self.second}"
        )


class ResultCountError(BatchError):
    """The function returned a sequence of the wrong length. Return one result per item, or None."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"expected one result for each of {self.expected} items, got {self.got}"


class ResultIdsError(BatchError):
    """The function returned results by id, and not for each item. Use `item.id` of all of them."""

    def __init__(self, expected: int, missing: Sequence[str], unknown: Sequence[str]) -> None:
        super().__init__(expected, list(missing), list(unknown))
        self.expected = expected
        self.missing = list(missing)
        self.unknown = list(unknown)

    def __str__(self) -> str:
        problems = []
        if self.missing:
            problems.append(f"{len(self.missing)} have none, such as {self.missing[0]!r}")
        if self.unknown:
            problems.append(f"{len(self.unknown)} are no item's id, such as {self.unknown[0]!r}")
        return f"expected a result for the id of each of {self.expected} items: " + "; ".join(
            problems
        )


class ResultTypeError(BatchError, TypeError):
    """The function returned what has no results. Return a list, a mapping by item.id, or None."""

    def __init__(self, got: str) -> None:
        super().__init__(got)
        self.got = got

    def __str__(self) -> str:
        return (
            "expected one result per item, as a list, a tuple or a mapping by item.id, or None, "
            f"got {self.got}"
        )


class NotSettled(BatchError):
    """The outcomes of a batch could not be stored. Its messages stay unacked and come back."""
