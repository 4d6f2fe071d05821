"""The lists of dead letters: read them, take letters out, move them back to a queue."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from routing.message.letter import Letter, parse
from routing.redis.commands import Commands
from routing.redis.scripts import run_script

#: Letters read or moved in one call, the bytes that are read, which costs the server little, and
#: those that are moved.
AT_MOST = 200
BYTES_AT_MOST = 8 * 1024 * 1024
MOVED_BYTES_AT_MOST = 512 * 1024

#: Letters of the first read, as nobody knows how big they are.
FIRST_LOT = 8


@dataclass(frozen=True, slots=True)
class Move:
    """A letter, and the payload that is appended to its queue in its place; "" drops the letter."""

    letter: Letter
    payload: bytes = b""


class Walk:
    """Letters of one queue, the oldest first, of which some are taken out on the way.

    Arguments:
        read: returns the next letters after so many that stay, the oldest first.
        wanted: which of them are meant.
    """

    def __init__(
        self, read: Callable[[int], list[Letter]], wanted: Callable[[Letter], bool]
    ) -> None:
        self._read = read
        self._wanted = wanted
        self._passed = 0

    def next(self, at_most: int) -> list[Letter]:
        """Return the next letters that are wanted, fewer when they are big; none at the end."""
        chosen: list[Letter] = []
        size = 0
        while size < BYTES_AT_MOST and (lot := self._read(self._passed)):
            for letter in lot:
                self._passed += 1
                if self._wanted(letter):
                    chosen.append(letter)
                    size += len(letter.payload)
                if len(chosen) == at_most:
                    return chosen
        return chosen

    def taken(self, count: int) -> None:
        """Note that so many of those passed are gone; new ones come at the other end."""
        self._passed -= count


class StoredLetters:
    """The dead letters of one broker database.

    Arguments:
        client: a client that adds no key prefix.
        commands: the engine's calls for this database.
    """

    def __init__(self, client: redis.Redis, commands: Commands) -> None:
        # redis-py's types allow for asynchronous and decoded replies, which this one never gives.
        self._client: Any = client
        self._commands = commands
        self._lot: defaultdict[str, int] = defaultdict(lambda: FIRST_LOT)

    def count(self, queue: str) -> int:
        """Return how many dead letters a queue has."""
        count: int = self._client.llen(self._commands.keys.dead(queue))
        return count

    def now_ms(self) -> int:
        """Return the server's clock, which letters are stamped with."""
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def newest(self, queue: str) -> Iterator[Letter]:
        """Yield the dead letters of a queue, the newest first."""
        start = 0
        while letters := self._read(queue, start, start + self._lot[queue] - 1):
            yield from letters
            start += len(letters)

    def newest_of(self, queues: Iterable[str]) -> Iterator[Letter]:
        """Yield the dead letters of several queues, the newest of all first."""
        merged = heapq.merge(*map(self._dated, queues), key=lambda dated: dated[0], reverse=True)
        return (letter for _, letter in merged)

    def _dated(self, queue: str) -> Iterator[tuple[float, Letter]]:
        """Yield the letters of a queue with times that never rise.

        A letter that does not say when it died must not keep those after it back.
        """
        at_ms = float("inf")
        for letter in self.newest(queue):
            at_ms = min(at_ms, letter.at_ms or at_ms)
            yield at_ms, letter

    def walk(self, queue: str, wanted: Callable[[Letter], bool]) -> Walk:
        """Return a way through the letters of a queue that are wanted, the oldest first."""

        def read(skip: int) -> list[Letter]:
            return self._read(queue, -skip - self._lot[queue], -skip - 1)[::-1]

        return Walk(read, wanted)

    def _read(self, queue: str, first: int, last: int) -> list[Letter]:
        payloads = self._client.lrange(self._commands.keys.dead(queue), first, last)
        if last < 0:  # at the newest there may be fewer than asked for
            first = last - len(payloads) + 1
        # No more next time than fits when all are as big as the biggest.
        biggest = max(map(len, payloads), default=0) or 1
        self._lot[queue] = max(1, min(AT_MOST, 4 * self._lot[queue], BYTES_AT_MOST // biggest))
        return [parse(queue, payload, first + n) for n, payload in enumerate(payloads)]

    def move(
        self,
        moves: Sequence[Move],
        *,
        to: str,
        before: Callable[[Letter], None] = lambda _: None,
    ) -> list[Letter]:
        """Move letters to the back of a queue, or drop them; return those that were still there.

        The bound of the queue does not refuse them: they were accepted once.

        Arguments:
            moves: the letters, and what they become.
            to: the queue.
            before: called with each letter, right before it may be moved.
        """
        moved: list[Letter] = []
        for queue, priority, lot in _lots(moves):
            for move in lot:
                before(move.letter)
            while lot:
                # Those that were moved do not stand before the others any more.
                asked = [(_index_after(moved, move.letter), move) for move in lot]
                flags = self._call(queue, priority, asked, to)
                for move, is_there in zip(lot, flags, strict=False):
                    if is_there or self._moves_elsewhere(move, priority, to):
                        moved.append(move.letter)
                lot = lot[len(flags) :]
        return moved

    def _moves_elsewhere(self, move: Move, priority: int, to: str) -> bool:
        """Look for a letter that is not where it was, as others were removed; move it if it is."""
        queue, index = move.letter.queue, -1
        while letters := self._read(queue, index - self._lot[queue] + 1, index):
            for letter in reversed(letters):
                if letter.payload == move.letter.payload:
                    (is_there,) = self._call(queue, priority, [(letter.index, move)], to)
                    return bool(is_there)
            index -= len(letters)
        return False

    def _call(
        self, queue: str, priority: int, asked: Sequence[tuple[int, Move]], to: str
    ) -> Sequence[int]:
        keys, limit = self._commands.keys, self._commands.topology.queue(to).max_length or 0
        names = [keys.dead(queue), self._ledger(queue), keys.ready(to, priority)]
        names += [keys.bell(to), self._ledger(to), *keys.ready_lists(to)]
        entries = [v for index, move in asked for v in (index, move.letter.payload, move.payload)]
        flags: Sequence[int] = run_script(self._client, "revive", names, [limit, *entries])
        return flags

    def _ledger(self, queue: str) -> str:
        return self._commands.keys.ledger(queue) if queue in self._commands.topology else ""


def _index_after(moved: Iterable[Letter], letter: Letter) -> int:
    """Return where a letter stands now, after others of its list were moved."""
    index = letter.index
    others = [other.index for other in moved if other.queue == letter.queue]
    if index < 0:
        return index + sum(index < other < 0 for other in others)
    return index - sum(0 <= other < index for other in others)


def _lots(moves: Sequence[Move]) -> Iterator[tuple[str, int, list[Move]]]:
    """Yield what can go in one call: of one queue and one priority, and not too much."""
    lots: dict[tuple[str, int], list[Move]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for move in moves:
        key = (move.letter.queue, move.letter.priority)
        lot = lots.setdefault(key, [])
        lot.append(move)
        sizes[key] = sizes.get(key, 0) + len(move.letter.payload) + len(move.payload)
        if len(lot) >= AT_MOST or sizes[key] >= MOVED_BYTES_AT_MOST:
            yield (*key, lots.pop(key))
            del sizes[key]
    for key, lot in lots.items():
        yield (*key, lot)
