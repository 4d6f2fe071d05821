"""How one item of a batch ends, as frozen values; what each means to Celery is decided later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Done:
    """The item succeeded with this result."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The item ends as if it had raised this error: autoretry, Ignore and Reject apply to it."""

    error: Exception
    # Kept apart, because an error that many items share grows with each raise.
    traceback: TracebackType | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Suspected:
    """The item's call has failed without naming any: further calls tell whose fault that was."""

    error: Exception
    traceback: TracebackType | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Retried:
    """The item is sent again, within its own retry limit."""

    # Seconds; None means the task's own backoff or `default_retry_delay`.
    countdown: float | None = None
    error: Exception | None = None
    # Further arguments of `Task.retry`, when the function called that.
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dead:
    """The item is not tried again: it fails, and is kept as a dead letter with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """The item is replaced by this signature, which takes over its id, links and canvas."""

    signature: Any


@dataclass(frozen=True, slots=True)
class Repeated:
    """The item already succeeded in an earlier delivery: it is not run again, only settled."""


Outcome: TypeAlias = Done | Failed | Suspected | Retried | Dead | Replaced | Repeated


DONE = Done()


class Blame(StrEnum):
    """Who has failed when a call fails without naming anybody."""

    EACH = "each"  #: every item that has no outcome
    ALONE = "alone"  #: an item that was called alone; several are suspected
    NOBODY = "nobody"  #: whoever was called is suspected


#: In an item's request: its outcome, until it is replayed.
OUTCOME = "_batching_outcome"

#: There, too: the countdowns of the retries of its batch, by what they are for. Items that share an
#: error share its jitter, so that they meet again.
COUNTDOWNS = "_batching_countdowns"
