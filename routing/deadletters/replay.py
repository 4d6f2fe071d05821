"""Runs dead letters again, carefully: in waves that grow, as long as they do not die again.

Whatever killed a thousand messages may kill them a second time. So the first wave is small, each
next one is at most twice as big, and between two waves the dead letters are looked at: when more
than a share of what was replayed is back, the rest stays where it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routing.deadletters.letter import contents_of, revived
from routing.message.letter import Letter
from routing.redis.letters import Move, StoredLetters

#: Letters of the first wave: enough to tell one unlucky message from a broken world.
FIRST_WAVE = 10

#: Letters of the biggest wave: what a few workers run in about a second.
BIGGEST_WAVE = 1_000

#: Seconds from one wave to the next.
WAVE_SECONDS = 1.0

#: Seconds between two looks at the dead letters.
LOOK_SECONDS = 0.1

#: Newest letters of a queue that one look goes through, at least; with big waves, twice the wave.
LOOK_AT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How letters are replayed.

    Attributes:
        rate: most letters a second; None lets the waves grow to `BIGGEST_WAVE`.
        most: most letters in all; None for no limit.
        stop_at: the share of replayed letters that may die again before the rest stays, from 0 to
            1; 1 never stops.
        to: the queue that they go to; None for the one that each came from.
        args, kwargs: other arguments for them; None leaves them.
    """

    rate: float | None = None
    most: int | None = None
    stop_at: float = 0.1
    to: str | None = None
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None

    def wave(self, number: int, replayed: int) -> int:
        """Return the size of a wave.

        >>> [Plan(most=100).wave(n, 0) for n in range(5)], Plan(rate=3).wave(1, 3)
        ([10, 20, 40, 80, 100], 3)
        """
        size = min(FIRST_WAVE << min(number, 10), BIGGEST_WAVE)
        if self.rate is not None:
            size = min(size, max(1, int(self.rate * WAVE_SECONDS)))
        return size if self.most is None else min(size, self.most - replayed)

    def seconds(self, size: int) -> float:
        """Return how long a wave of this size takes, at least."""
        return max(WAVE_SECONDS, size / self.rate if self.rate else 0.0)


@dataclass(slots=True)
class Replayed:
    """What came of it: what was replayed, the letters that died again, why it ended early.

    `marks` counts what was replayed by id, or by its contents where there is no id; of so many
    alike, the newest dead ones are those that died again.
    """

    marks: Counter[str] = field(default_factory=Counter)
    died: dict[tuple[str, int], Letter] = field(default_factory=dict)
    count: int = 0
    stopped: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the figures under their public names."""
        return {"replayed": self.count, "died_again": len(self.died), "stopped": self.stopped}


class Replay:
    """One replay.

    Arguments:
        stored_letters: the dead letters.
        plan: how.
        forget: forgets the stored result of a task id, so that whoever asks waits again.
        report: called after each wave.
    """

    def __init__(
        self,
        stored_letters: StoredLetters,
        plan: Plan,
        *,
        forget: Callable[[str], None],
        report: Callable[[Replayed], None] = lambda _: None,
    ) -> None:
        self._stored_letters = stored_letters
        self._plan = plan
        self._forget = forget
        self._report = report
        self._done = Replayed()
        self._looked_at: set[str] = set()
        self._waves = 0

    def run(self, queues: Iterable[str], wanted: Callable[[Letter], bool]) -> Replayed:
        """Replay the letters of these queues that are wanted; returns what came of it."""
        # What dies again meanwhile is not replayed a second time.
        started_ms = self._stored_letters.now_ms()
        for queue in queues:
            walk = self._stored_letters.walk(
                queue, lambda letter: letter.at_ms <= started_ms and wanted(letter)
            )
            while size := self._plan.wave(self._waves, self._done.count):
                letters = walk.next(size)
                if not letters:
                    break
                walk.taken(self._wave(letters, started_ms))
                if self._done.stopped:
                    return self._done
        return self._done

    def _wave(self, letters: Sequence[Letter], started_ms: int) -> int:
        ends_at = time.monotonic() + self._plan.seconds(len(letters))
        moved = self._move(letters)
        self._waves += 1
        while True:
            self._look(started_ms, at_most=max(LOOK_AT, 2 * len(letters)))
            self._report(self._done)
            if self._done.stopped or time.monotonic() >= ends_at:
                return moved
            time.sleep(LOOK_SECONDS)

    def _move(self, letters: Sequence[Letter]) -> int:
        to = self._plan.to or letters[0].queue
        args, kwargs = self._plan.args, self._plan.kwargs
        moves = [Move(one, revived(one, queue=to, args=args, kwargs=kwargs)) for one in letters]
        moved = self._stored_letters.move(moves, to=to, before=self._forget_result)
        self._looked_at.update((letters[0].queue, to))
        payloads = {id(move.letter): move.payload for move in moves}
        for letter in moved:
            self._done.marks[letter.id or contents_of(payloads[id(letter)])] += 1
        self._done.count += len(moved)
        return len(moved)

    def _forget_result(self, letter: Letter) -> None:
        """Forget the result before the letter can run: what it stores must not be forgotten."""
        if letter.id:
            self._forget(letter.id)

    def _look(self, started_ms: int, *, at_most: int) -> None:
        seen: Counter[str] = Counter()
        for queue in self._looked_at:
            for position, letter in enumerate(self._stored_letters.newest(queue)):
                if letter.at_ms < started_ms or position >= at_most:
                    break
                mark = letter.id or contents_of(letter.payload)
                seen[mark] += 1
                if seen[mark] <= self._done.marks[mark]:
                    self._done.died[mark, seen[mark]] = letter
        died, count = len(self._done.died), self._done.count
        if count and died / count > self._plan.stop_at:
            last = next(reversed(self._done.died.values()))
            why = f"{last.exception}: {last.message}".strip(": ")[:200]
            self._done.stopped = f"{died:,} of {count:,} replayed messages died again, last: {why}"
