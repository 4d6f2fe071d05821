"""The notes of `benchmarks.apps.queued`: a file for each queue and process, a record a run."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RECORD = struct.Struct("=qqqq")

#: Of calls that only open connections and load modules.
WARM_NUMBER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a task; times in nanoseconds of the machine's monotonic clock."""

    number: int
    sent_ns: int
    began_ns: int
    ended_ns: int

    @property
    def waited_ms(self) -> float:
        """Return how long it waited for its start."""
        return (self.began_ns - self.sent_ns) / 1e6

    def pack(self) -> bytes:
        """Return its record."""
        return RECORD.pack(self.number, self.sent_ns, self.began_ns, self.ended_ns)


class Sent(NamedTuple):
    """One call: when it was made, and when its push had returned; nanoseconds of that clock."""

    called_ns: int
    pushed_ns: int
    task_id: str


def path_of(directory: Path, queue: str, pid: int) -> Path:
    """Return the file of a process."""
    return directory / f"runs.{queue}.{pid}"


def count(directory: Path, queue: str) -> int:
    """Return how many runs are noted, warm ones included, without reading them."""
    return sum(path.stat().st_size // RECORD.size for path in _paths(directory, queue))


def read(directory: Path, queue: str, *, pid: int | None = None) -> list[Run]:
    """Return the runs of a queue in the order of their starts, without warm ones.

    Arguments:
        pid: the process that ran them; None for all.
    """
    paths = _paths(directory, queue, "*" if pid is None else str(pid))
    runs = (run for path in paths for run in _unpack(path.read_bytes()))
    return sorted((r for r in runs if r.number != WARM_NUMBER), key=lambda run: run.began_ns)


def forget(directory: Path, queue: str) -> None:
    """Begin anew."""
    for path in _paths(directory, queue):
        os.truncate(path, 0)


def _paths(directory: Path, queue: str, pid: str = "*") -> Iterator[Path]:
    return directory.glob(f"runs.{queue}.{pid}")


def _unpack(data: bytes) -> Iterator[Run]:
    for fields in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]):
        number, sent_ns, began_ns, ended_ns = fields
        yield Run(number=number, sent_ns=sent_ns, began_ns=began_ns, ended_ns=ended_ns)
