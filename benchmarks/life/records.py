"""What tasks and the producer write down: records of one size, in files of one process each.

One write appends one record, so a process that is killed leaves whole records. The times are the
machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_RUN = struct.Struct("<dIHHB")
_SENT = struct.Struct("<dIB36s")
_SENT_FILE = "sent"


class Step(IntEnum):
    """What a task notes."""

    STARTED = 0
    DONE = 1
    FAILED = 2  # for good, as it was told to
    AGAIN = 3  # it is to be tried again, as it was told to
    REFUSED = 4  # by the sink: it is to be tried again
    SETTLED = 5  # what follows was done where it ran: its state is stored, a retry is on its way


@dataclass(frozen=True, slots=True)
class Note:
    """One step of one attempt at a message, and how many items its call had."""

    at: float
    number: int
    attempt: int
    size: int
    step: Step
    parent: int
    pid: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that the broker took (its id), or refused for now (no id)."""

    at: float
    number: int
    is_accepted: bool
    id: str


class Notebook:
    """The notes of this process; a forked child opens a file of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = (0, -1)

    def note(self, step: Step, numbers: Iterable[tuple[int, int]], size: int = 1) -> None:
        """Append a step of some messages, given as numbers and attempts, in one write."""
        now = time.monotonic()
        pack = _RUN.pack
        os.write(self._descriptor(), b"".join(pack(now, n, a, size, step) for n, a in numbers))

    def _descriptor(self) -> int:
        pid = os.getpid()
        if self._file[0] != pid:
            path = self._directory / f"runs.{os.getppid()}.{pid}"
            self._file = (pid, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        return self._file[1]


class SentBook:
    """What the producer has sent."""

    def __init__(self, directory: Path) -> None:
        self._file = os.open(directory / _SENT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, at: float, numbers: Iterable[int], ids: Iterable[str]) -> None:
        """Append messages that were accepted; ``at`` is when their publishing began."""
        pairs = zip(numbers, ids, strict=True)
        os.write(self._file, b"".join(_SENT.pack(at, n, 1, one.encode()) for n, one in pairs))

    def refused(self, at: float, number: int) -> None:
        """Append an attempt that failed."""
        os.write(self._file, _SENT.pack(at, number, 0, b""))


def read_notes(directory: Path) -> list[Note]:
    """Return the notes of all processes, in the order of their times."""
    found = [note for path in directory.glob("runs.*") for note in _notes(path)]
    found.sort(key=lambda note: note.at)
    return found


def _notes(path: Path) -> Iterator[Note]:
    _, parent, pid = path.name.split(".")
    for at, number, attempt, size, step in _RUN.iter_unpack(_whole(path.read_bytes(), _RUN.size)):
        yield Note(at, number, attempt, size, Step(step), int(parent), int(pid))


def read_sent(directory: Path, offset: int = 0) -> tuple[list[Sent], int]:
    """Return what was sent since an offset, and the next offset."""
    path = directory / _SENT_FILE
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = _whole(file.read(), _SENT.size)
    found = [
        Sent(at, number, bool(accepted), raw.rstrip(b"\0").decode())
        for at, number, accepted, raw in _SENT.iter_unpack(data)
    ]
    return found, offset + len(data)


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]
