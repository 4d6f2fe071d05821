"""Figures as text: columns side by side, in as many blocks as the terminal's width asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Width when there is no terminal to ask: a log, a pipe.
DEFAULT_WIDTH = 100

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A title and a cell for each row; numbers stand on the right."""

    title: str
    cells: Sequence[str]
    is_text: bool = False

    @property
    def width(self) -> int:
        """Characters of the widest cell."""
        return max(len(cell) for cell in (self.title, *self.cells))

    def padded(self) -> list[str]:
        """Return title and cells in the column's width."""
        pad = str.ljust if self.is_text else str.rjust
        return [pad(cell, self.width) for cell in (self.title, *self.cells)]


def terminal_width() -> int:
    """Return how many characters fit in a line."""
    return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns


def lines(
    name: Column, columns: Sequence[Column], last: Sequence[Column], *, width: int
) -> Iterator[str]:
    """Yield the lines of a table.

    Arguments:
        name: the column that begins every block.
        columns: the others, the most important first; what does not fit goes to further blocks,
            which leave rows of nothing but 0 out.
        last: the columns that end the first block.
        width: characters that fit in a line.
    """
    rest, end = list(columns), list(last)
    while rest or end:
        block, free = [name], width - _taken([name, *end])
        while rest and (len(block) == 1 or _taken(rest[:1]) <= free):
            free -= _taken(rest[:1])
            block.append(rest.pop(0))
        is_first, block, end = bool(end), [*block, *end], []
        for row, cells in enumerate(zip(*(column.padded() for column in block), strict=True)):
            if is_first or row == 0 or any(c.cells[row - 1] != "0" for c in block[1:]):
                yield _GAP.join(cells).rstrip()
        if rest:
            yield ""


def _taken(columns: Sequence[Column]) -> int:
    return sum(column.width + len(_GAP) for column in columns)


def age(seconds: float | None) -> str:
    """Return a time span in its two largest units.

    >>> [age(s) for s in (None, 0.4, 75, 7_260, 200_000)]
    ['-', '0s', '1m15s', '2h01m', '2d07h']
    """
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
