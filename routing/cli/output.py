"""Figures as text: columns side by side, in as many blocks as the terminal's width asks for."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from routing.deadletters.letter import LetterGroup
from routing.message.evidence import TRACEBACK_AT_MOST
from routing.message.letter import Letter

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


def letter_lines(letter: Letter, *, now_ms: int, width: int) -> Iterator[str]:
    """Yield the two lines of a letter in a list."""
    details = [_ago(letter.at_ms, now_ms), letter.queue, letter.task or "no task"]
    if letter.attempts > 1:
        details.append(f"{letter.attempts} attempts")
    if letter.replayed:
        details.append(f"replayed {letter.replayed}x")
    yield f"{handle_of(letter):<36}  {'  '.join(details)}"
    yield _cut(f"    {_why(letter)}", width)


def group_lines(group: LetterGroup, *, now_ms: int, width: int) -> Iterator[str]:
    """Yield the lines of a group."""
    ends = (group.first_at_ms, group.last_at_ms)
    when = " to ".join(dict.fromkeys(_ago(at, now_ms) for at in ends))
    yield f"{group.count:>8,}  {group.queue}  {group.task or 'no task'}  {when}"
    what = f"{group.reason or 'no evidence'}  {group.exception}: {group.message}".rstrip(": ")
    yield _cut(f"{'':8}  {_one_line(what)}", width)
    example = f"  for example {group.id}" if group.id else ""
    yield f"{'':8}  {_fingerprint(group.fingerprint)}{example}"


def full_text(letter: Letter, *, now_ms: int) -> str:
    """Return everything that is known about a letter."""
    times = [f"{_clock(letter.at_ms)} ({_ago(letter.at_ms, now_ms)})"]
    if letter.first_ms:
        times.append(f"sent {_clock(letter.first_ms)}")
    rows = {
        "id": letter.id or "none",
        "task": letter.task or "none",
        "queue": letter.queue,
        "arguments": f"{letter.args} {letter.kwargs}".strip(),
        "died": ", ".join(times),
        "reason": letter.reason or "no evidence",
        "error": f"{letter.exception}: {letter.message}".strip(": "),
        "attempts": str(letter.attempts or "unknown"),
        "deliveries": str(letter.deliveries or "unknown"),
        "replayed": f"{letter.replayed}x" if letter.replayed else "",
        "worker": letter.worker,
        "fingerprint": letter.fingerprint,
    }
    lines = [f"{name:<12} {value}" for name, value in rows.items() if value]
    if letter.traceback:
        lines += ["", textwrap.indent(_traceback(letter), "    ")]
    return "\n".join(lines)


def handle_of(letter: Letter) -> str:
    """Return what ``show`` takes to find a letter: its id, or the group of one that has none."""
    return letter.id or _fingerprint(letter.fingerprint)


def count_of(count: int, *, more: bool = False) -> str:
    """Return a number of letters in words.

    >>> count_of(1), count_of(8255), count_of(16, more=True)
    ('1 dead letter', '8,255 dead letters', '16 more dead letters')
    """
    return f"{count:,} {'more ' if more else ''}dead letter{'' if count == 1 else 's'}"


def groups_text(groups: Sequence[LetterGroup], *, now_ms: int, width: int) -> str:
    """Return the lines of groups, a blank line between two."""
    return "\n\n".join(
        "\n".join(group_lines(group, now_ms=now_ms, width=width)) for group in groups
    )


def _fingerprint(fingerprint: str) -> str:
    return f"--fingerprint {shlex.quote(fingerprint)}"


def _traceback(letter: Letter) -> str:
    """Return the traceback; one whose beginning is cut off begins with a whole line."""
    text = letter.traceback.rstrip()
    if len(letter.traceback) < TRACEBACK_AT_MOST or text.startswith("Traceback ("):
        return text
    _, _, whole_lines = text.partition("\n")
    return f"...\n{whole_lines or text}"


def _why(letter: Letter) -> str:
    error = f"{letter.exception}: {letter.message}".strip(": ")
    return _one_line(f"{letter.reason or 'no evidence'}  {error}")


def _one_line(text: str) -> str:
    return "  ".join(" ".join(part.split()) for part in text.split("  ") if part.strip())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _ago(at_ms: int, now_ms: int) -> str:
    return f"{age(max(0, now_ms - at_ms) / 1000)} ago" if at_ms else "at an unknown time"


def _clock(at_ms: int) -> str:
    if not at_ms:
        return "at an unknown time"
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"  # a message may say anything
