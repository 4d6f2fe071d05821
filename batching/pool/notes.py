"""Outcomes that outlive the process in which they were given.

`item.done()` says that an effect is durable, so it is kept when the process then dies or is killed
for its time limit. Each call has a page of memory that the pool processes have inherited from the
worker's parent; what the function says of an item is noted there at once, and is read only when the
call leaves no answer. What finds no room is not noted: that item is as one without a word.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from batching.outcomes import DONE, Done, Failed, Outcome

#: A page holds the outcomes of some thousand items; memory that nobody writes to takes no place.
PAGE_BYTES = 256 * 1024

#: Calls that run at once and have a page.
PAGES = 64

#: A process that is being killed may write for so long.
DYING_SECONDS = 5.0

_LENGTH = struct.Struct("<Q")  # at the beginning of a page: bytes that are noted
_AT = struct.Struct("<q")  # then: the place of the item that the function is at, -1 for none
_BEGIN = _LENGTH.size + _AT.size
_ENTRY = struct.Struct("<II")  # before each outcome: place of its item, bytes


class Notes:
    """The pages of one worker; made before its pool processes are.

    Arguments:
        pages: how many.
        page_bytes: how large each is.
    """

    def __init__(self, pages: int = PAGES, page_bytes: int = PAGE_BYTES) -> None:
        self._memory = mmap.mmap(-1, pages * page_bytes)
        self._page_bytes = page_bytes
        self._free = deque((0.0, page) for page in range(pages))
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """Return an empty page, None where all are taken."""
        with self._lock:
            if not self._free or self._free[0][0] > time.monotonic():
                return None
            _, page = self._free.popleft()
        _LENGTH.pack_into(self._memory, page * self._page_bytes, 0)
        self.start(page, -1)
        return page

    def start(self, page: int, place: int) -> None:
        """Note that the function has come to an item, by its place in the call; -1 for none."""
        _AT.pack_into(self._memory, page * self._page_bytes + _LENGTH.size, place)

    def at(self, page: int) -> int | None:
        """Return the place of the item that the function was at, if it goes item by item."""
        (place,) = _AT.unpack_from(self._memory, page * self._page_bytes + _LENGTH.size)
        return place if place >= 0 else None

    def release(self, page: int | None, *, is_dying: bool = False) -> None:
        """Take a page back.

        Arguments:
            page: what `take` has returned.
            is_dying: whether the process that had it may still write.
        """
        if page is None:
            return
        with self._lock:
            if is_dying:
                self._free.append((time.monotonic() + DYING_SECONDS, page))
            else:
                self._free.appendleft((0.0, page))

    def note(self, page: int, place: int, outcome: Outcome) -> None:
        """Note the outcome of an item, by its place in the call."""
        if (data := _DONE_DATA if outcome is DONE else _pickled(outcome)) is None:
            return
        begin = page * self._page_bytes
        (length,) = _LENGTH.unpack_from(self._memory, begin)
        at = begin + _BEGIN + length
        end = at + _ENTRY.size + len(data)
        if end > begin + self._page_bytes:
            return
        _ENTRY.pack_into(self._memory, at, place, len(data))
        self._memory[at + _ENTRY.size : end] = data
        # Last: a process that is killed on the way leaves nothing half noted.
        _LENGTH.pack_into(self._memory, begin, end - begin - _BEGIN)

    def read(self, page: int | None) -> dict[int, bytes]:
        """Return the outcomes on a page, pickled, by the places of their items."""
        return {} if page is None else dict(self._entries(page))

    def _entries(self, page: int) -> Iterator[tuple[int, bytes]]:
        begin = page * self._page_bytes
        (length,) = _LENGTH.unpack_from(self._memory, begin)
        at, end = begin + _BEGIN, begin + _BEGIN + length
        while at < end:
            place, size = _ENTRY.unpack_from(self._memory, at)
            at += _ENTRY.size
            yield place, self._memory[at : at + size]
            at += size


def _pickled(outcome: Outcome) -> bytes | None:
    """Return what an outcome can be made of elsewhere; None where it cannot travel.

    That is settled where it is, or not at all.
    """
    if isinstance(outcome, Failed):
        outcome = replace(outcome, traceback=None)
    try:
        data = pickle.dumps(outcome, protocol=pickle.HIGHEST_PROTOCOL)
        if not _is_plain(outcome):
            pickle.loads(data)
    except Exception:
        return None
    return data


#: What most items end with.
_DONE_DATA = pickle.dumps(DONE, protocol=pickle.HIGHEST_PROTOCOL)


def _is_plain(outcome: Outcome) -> bool:
    """Return whether an outcome surely comes back from what it is pickled to."""
    return isinstance(outcome, Done) and isinstance(outcome.result, str | int | float | None)


def loads(data: bytes) -> Any:
    """Return a noted outcome; only where the function runs, as it may hold anything."""
    return pickle.loads(data)


#: Those of this process, and of the pool processes that it makes.
NOTES = Notes()
