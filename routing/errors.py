"""Everything that ``routing`` raises, in one tree.

::

    RoutingError
    ├── TopologyError        (also a ValueError)      the queue table cannot be used
    ├── UnknownLevel         (also a ValueError)      a priority level that nobody serves
    ├── QueueFull                                     a queue's bound refused a message
    ├── PublishRefused                                some messages of a bulk call were refused
    ├── BrokerUnreachable    (also kombu's OperationalError)  no broker took the message
    └── EngineError                                   the Redis engine cannot work with this server
        └── ScriptError                               a Lua verb is malformed or answered nonsense

Each message says what happened, then what to do. All of them survive pickling, so that they can
travel through a result backend or a process pool.
"""

from __future__ import annotations

from typing import Any

from kombu.exceptions import OperationalError

__all__ = [
    "BrokerUnreachable",
    "EngineError",
    "PublishRefused",
    "QueueFull",
    "RoutingError",
    "ScriptError",
    "TopologyError",
    "UnknownLevel",
]


class RoutingError(Exception):
    """The root of all errors of this package; catch it to catch them all."""


class TopologyError(RoutingError, ValueError):
    """The queue table cannot be used. Correct the field that the message names and start again."""


class UnknownLevel(RoutingError, ValueError):
    """No queue serves this priority level for this task; nothing was published.

    Use one of the levels that the message lists, or add the level to the task's route.
    """


class QueueFull(RoutingError):
    """A queue's ``max_length`` refused a message; it was not published.

    Try again after ``retry_after`` seconds, add workers, or raise ``max_length``.

    Attributes:
        queue: the queue that is full.
        length: messages that wait in it.
        limit: its ``max_length``.
        retry_after: seconds after which trying again is sensible.
    """

    def __init__(
        self, queue: str, length: int = 0, limit: int = 0, retry_after: float = 1.0
    ) -> None:
        super().__init__(queue, length, limit, retry_after)
        self.queue = queue
        self.length = length
        self.limit = limit
        self.retry_after = retry_after

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} is full: {self.length} of at most {self.limit} messages wait; "
            f"try again in about {self.retry_after:.1f} s, add workers, or raise max_length"
        )


class PublishRefused(RoutingError):
    """Some messages of a bulk call were refused; the receipts say which and why.

    Send them again when the queue has room, or correct what their receipts complain about.

    Attributes:
        receipts: the receipts of the whole call.
    """

    def __init__(self, message: str, receipts: Any = None) -> None:
        super().__init__(message, receipts)
        self.receipts = receipts

    def __str__(self) -> str:
        return str(self.args[0])


class BrokerUnreachable(RoutingError, OperationalError):
    """No broker took the message within the publish retries; start the broker or correct its URL.

    It is kombu's ``OperationalError`` too, so that code that catches that keeps working.

    Attributes:
        receipts: for a bulk call, the receipts of what was accepted before; else None.
    """

    def __init__(self, message: str, receipts: Any = None) -> None:
        super().__init__(message, receipts)
        self.receipts = receipts

    def __str__(self) -> str:
        return str(self.args[0])


class EngineError(RoutingError):
    """The Redis engine cannot work with this server; the message says what to change."""


class ScriptError(EngineError):
    """A Lua verb has no proper header, or its reply is not what the header promises: a defect or an
    installation that mixes two versions. Install the package again."""
