"""Everything that batching raises, as one tree.

    BatchError
    ├── InvalidOption      a task was defined with an option that cannot work      (ValueError)
    ├── InvalidItem        an item does not fit the task's model; it fails alone   (ValueError)
    ├── InvalidOutcome     an outcome's method was given what it cannot use        (TypeError)
    ├── OutcomeTwice       an item was given a second outcome
    ├── ResultCountError   as many results as items were expected
    ├── ResultTypeError    the function returned something that is not a sequence  (TypeError)
    └── NotSettled         the outcomes could not be stored; the items come back

`InvalidItem` is one item's own failure. `OutcomeTwice`, `ResultCountError` and `ResultTypeError`
are errors of the whole batch: nobody can say which item they belong to, so every item of the call
fails or retries with them. All of them survive pickle and the JSON of a result backend.
"""

from __future__ import annotations


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


class ResultTypeError(BatchError, TypeError):
    """The function returned something that is not a sequence. Return a list, a tuple, or None."""

    def __init__(self, got: str) -> None:
        super().__init__(got)
        self.got = got

    def __str__(self) -> str:
        return f"expected a list or tuple with one result per item, or None, got {self.got}"


class NotSettled(BatchError):
    """The outcomes of a batch could not be stored. Its messages stay unacked and come back."""
