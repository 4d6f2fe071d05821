"""What a worker of `benchmarks.apps.staged` notes on an urgent message's way, and of its loop.

One file, a note a line; times in nanoseconds of the machine's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

#: The queue whose messages are followed.
URGENT = "urgent"

#: The queue of batches; a call takes as long however many items it has.
BATCHES = "batches"
BATCH_SIZE = 500
BATCH_SECONDS = 0.05

FILE = "marks"

#: The loop from the end of a poll to the begin of the next.
TURN = "turn"


class Span(NamedTuple):
    """The loop was busy with something; what is noted within it counts only for that.

    Attributes:
        own_ns: how long that took; for a turn, with all that is noted within.
        cpu_ns: what it took of a core: other programs of the machine do not count.
    """

    what: str
    began_ns: int
    ended_ns: int
    own_ns: int
    cpu_ns: int


@dataclass(slots=True)
class Marks:
    """All that a worker has noted.

    Attributes:
        bells: when the loop learned that the urgent queue's bell had rung, in order.
        exchanges: when each exchange that asks the urgent queue was sent, by its tag prefix.
        replies: when the reply to each of them had been read.
        deliveries: which exchange brought a message, and when its consumer got it, by its id.
        handed: when a message was given to the pool, by its id.
        spans: what the loop was busy with.
    """

    bells: list[int] = field(default_factory=list)
    exchanges: dict[str, int] = field(default_factory=dict)
    replies: dict[str, int] = field(default_factory=dict)
    deliveries: dict[str, tuple[str, int]] = field(default_factory=dict)
    handed: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Marks:
        """Read notes.

        >>> Marks.parse(["bell 5", "handed id 7", "span turn 1 4 2 1"]).spans
        [Span(what='turn', began_ns=1, ended_ns=4, own_ns=2, cpu_ns=1)]
        """
        made = cls()
        for line in lines:
            match line.split():
                case ["bell", at]:
                    made.bells.append(int(at))
                case ["exchange", prefix, at]:
                    made.exchanges[prefix] = int(at)
                case ["reply", prefix, at]:
                    made.replies[prefix] = int(at)
                case ["delivery", task_id, prefix, at]:
                    made.deliveries[task_id] = prefix, int(at)
                case ["handed", task_id, at]:
                    made.handed[task_id] = int(at)
                case ["span", what, *times]:
                    began, ended, own, cpu = map(int, times)
                    made.spans.append(Span(what, began, ended, own, cpu))
                case _:
                    raise ValueError(f"expected a note of a worker, got {line!r}")
        return made


def read(directory: Path) -> Marks:
    """Return what the worker of a round has noted; the last line may not be all there yet."""
    whole, _, _ = (directory / FILE).read_text().rpartition("\n")
    return Marks.parse(whole.splitlines())
