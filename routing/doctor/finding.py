"""What a doctor says: one finding for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: ok: as it should be. warn: somebody should look. error: work is lost or stuck, or will be.
Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: what was found and, unless there is nothing, what to do."""

    check: str
    level: Level
    what: str
    advice: str = ""


#: Level, what was found, what to do.
Judgement: TypeAlias = tuple[Level, str, str]


def count_of(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
