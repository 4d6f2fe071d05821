"""Everything that ``routing`` raises, in one tree.

::

    RoutingError
    ├── TopologyError        (also a ValueError)      the queue table cannot be used
    ├── UnknownLevel         (also a ValueError)      a priority level that nobody serves
    ├── UnknownOption        (also a TypeError)       an option of a call that is misspelt
    ├── LevelPolicyFailed                             the app's level policy gave no usable answer
    ├── SettingRefused       (also a ValueError)      a setting of a queue that cannot be used
    ├── QueueFull                                     a queue's bound refused a message
    │   └── QueueDraining                             a queue takes no new work, whatever its bound
    ├── MessageTooLarge                               a message is bigger than its queue allows
    ├── Dropped                                       a queue's bound dropped an accepted message
    ├── DeadLetter                                    a task says that trying it again is useless
    ├── TooManyDeliveries                             a message killed its worker too often
    ├── AnswerUnreadable                              what a pool process answered cannot be read
    ├── PublishRefused                                some messages of a bulk call were refused
    ├── IncompatibleVersion  (also an ImportError)    Celery or kombu is too old, or too new
    ├── NotEditable                                   a dead letter's arguments cannot be edited
    ├── BrokerUnreachable    (also kombu's OperationalError)  no broker took the message
    └── EngineError                                   the Redis engine cannot work with this server
        └── ScriptError                               a script is malformed or answered nonsense

Each message says what happened, then what to do. All of them survive pickling, so that they can
travel through a result backend or a process pool.
"""

from __future__ import annotations

from typing import Any

from kombu.exceptions import OperationalError

__all__ = [
    "AnswerUnreadable",
    "BrokerUnreachable",
    "DeadLetter",
    "Dropped",
    "EngineError",
    "IncompatibleVersion",
    "LevelPolicyFailed",
    "MessageTooLarge",
    "NotEditable",
    "PublishRefused",
    "QueueDraining",
    "QueueFull",
    "RoutingError",
    "ScriptError",
    "SettingRefused",
    "TooManyDeliveries",
    "TopologyError",
    "UnknownLevel",
    "UnknownOption",
]


class RoutingError(Exception):
    """The root of all errors of this package; catch it to catch them all."""


class TopologyError(RoutingError, ValueError):
    """The queue table cannot be used. Correct the field that the message names and start again."""


class UnknownLevel(RoutingError, ValueError):
    """No queue serves this priority level for this task; nothing was published.

    Use one of the levels that the message lists, or add the level to the task's route.
    """


class UnknownOption(RoutingError, TypeError):
    """An option of a call is not known, and close to one that decides where the message goes;
    nothing was published.

    Correct it; what is meant for the message itself goes into ``headers``.
    """


class LevelPolicyFailed(RoutingError):
    """The app's level policy raised, returned what is no level, or cannot be imported; nothing was
    published.

    Correct the policy; its own error is the cause of this one.
    """


class SettingRefused(RoutingError, ValueError):
    """A setting of a queue cannot be used; nothing was stored. Correct what the message names."""


class QueueFull(RoutingError):
    """A queue's bound refused a message; it was not published.

    Try again after ``retry_after`` seconds, add workers, or raise the bound.

    Attributes:
        queue: the queue that is full.
        length: messages (or bytes) that wait in it.
        limit: its ``max_length`` (or ``max_bytes``, or ``max_delayed``).
        retry_after: seconds after which trying again is sensible.
        unit: what is counted, "messages", "bytes" or "delayed messages".
        together: messages that had to be published together, whole or not at all.
        why_not_waited: why the caller did not wait for room although the queue's overflow policy is
            to block; "" when it waited, or does not block.
        is_consumed: whether anybody works on the queue, as far as the broker knows.
    """

    def __init__(
        self,
        queue: str,
        length: int = 0,
        limit: int = 0,
        retry_after: float = 1.0,
        unit: str = "messages",
        together: int = 1,
        why_not_waited: str = "",
        is_consumed: bool = True,
    ) -> None:
        super().__init__(
            queue, length, limit, retry_after, unit, together, why_not_waited, is_consumed
        )
        self.queue = queue
        self.length = length
        self.limit = limit
        self.retry_after = retry_after
        self.unit = unit
        self.together = together
        self.why_not_waited = why_not_waited
        self.is_consumed = is_consumed

    def __str__(self) -> str:
        bounds = {"bytes": "max_bytes", "delayed messages": "max_delayed"}
        bound = bounds.get(self.unit, "max_length")
        if self.unit != "bytes" and self.together > self.limit:
            return (
                f"queue {self.queue!r} takes at most {self.limit} {self.unit}, got {self.together} "
                f"that go together or not at all: send fewer at once, or raise {bound}"
            )
        remedy = f"try again in about {self.retry_after:.1f} s, add workers, or raise {bound}"
        if not self.is_consumed:
            remedy = f"no live worker consumes it: start one, or raise {bound}"
        return (
            f"queue {self.queue!r} is full: {self.length} of at most {self.limit} {self.unit} "
            f"wait; {remedy}" + (f" ({self.why_not_waited})" if self.why_not_waited else "")
        )


class QueueDraining(QueueFull):
    """A queue takes no new work for now, as ``drain`` was set; nothing was published.

    What was accepted before is worked off, its retries and links included. Send it elsewhere, or
    again when ``celery -A <app> queues reset <queue> drain`` has ended that.
    """

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} is draining and takes no new work: send it elsewhere, or let "
            f"the queue take work again (celery -A <app> queues reset {self.queue} drain)"
        )


class MessageTooLarge(RoutingError):
    """A message is bigger than its queue allows; it was not published, and never will be.

    Send a reference to the data instead, or raise the bound.

    Attributes:
        queue: the queue.
        size_bytes: bytes of the message, as it would be stored.
        limit_bytes: the queue's ``max_message_bytes`` (or ``max_bytes``, where that is less).
    """

    def __init__(self, queue: str, size_bytes: int = 0, limit_bytes: int = 0) -> None:
        super().__init__(queue, size_bytes, limit_bytes)
        self.queue = queue
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} takes messages of at most {self.limit_bytes} bytes, got one of "
            f"{self.size_bytes}: send a reference to the data, or raise max_message_bytes (and "
            "max_bytes)"
        )


class Dropped(RoutingError):
    """A queue's bound dropped this message after it was accepted; the task did not run.

    This is what ``AsyncResult.get()`` raises for it. Send it again if it is still wanted.

    Attributes:
        queue: the queue that was full.
        policy: its overflow policy.
    """

    def __init__(self, queue: str, policy: str = "") -> None:
        super().__init__(queue, policy)
        self.queue = queue
        self.policy = policy

    def __str__(self) -> str:
        if self.policy == "dead_letter":
            return f"not run: queue {self.queue!r} was full; the message is kept as a dead letter"
        return f"dropped: queue {self.queue!r} was full, and its overflow policy is {self.policy!r}"


class DeadLetter(RoutingError):
    """A task will never succeed, so it fails now and its message is kept as a dead letter.

    Raise it with a reason instead of another error when a retry cannot help; ``autoretry_for`` does
    not apply. Replay the message once its cause is gone: ``celery deadletter``.
    """


class TooManyDeliveries(RoutingError):
    """A message killed its worker as often as ``max_deliveries`` of its queue allows; it was not
    run again.

    Find out what it does to a worker, then replay it from the dead letters.

    Attributes:
        count: how often it did.
        last: how it did the last time.
    """

    def __init__(self, count: int, last: str = "") -> None:
        super().__init__(count, last)
        self.count = count
        self.last = last

    def __str__(self) -> str:
        return (
            f"it killed its worker {self.count} times, as often as max_deliveries allows; the "
            f"last time: {self.last}"
        )


class AnswerUnreadable(RoutingError):
    """What a pool process answered cannot be unpickled in the worker; what it ran has failed."""


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


class IncompatibleVersion(RoutingError, ImportError):
    """Celery or kombu lacks what this package needs. Install the version that the message names."""


class NotEditable(RoutingError):
    """The arguments of this message cannot be edited; replay it as it is, or send a new one."""


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
    """A script has no proper header, or its reply is not what the header promises: a defect or an
    installation that mixes two versions. Install the package again."""
