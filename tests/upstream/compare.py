"""What two runs of the suite differ in, and which of it is known."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

KNOWN = Path(__file__).parent / "known.toml"


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How the cases of one run ended: "passed", "failed" or "skipped"; and why some failed."""

    of: Mapping[str, str]
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> set[str]:
        """The cases that passed."""
        return {case for case, outcome in self.of.items() if outcome == "passed"}

    def __or__(self, later: Outcomes) -> Outcomes:
        """Return these, and where a case was run again, how it ended then."""
        return Outcomes(of={**self.of, **later.of}, texts={**self.texts, **later.texts})


@dataclass(frozen=True, kw_only=True)
class Known:
    """A difference that is listed.

    Arguments:
        cases: a pattern of the shell for names of cases.
        reason: why it is as it is.
    """

    cases: str
    reason: str

    def matches(self, case: str) -> bool:
        """Return whether it is about this case."""
        return fnmatchcase(case, self.cases)


def load(path: Path = KNOWN) -> list[Known]:
    """Return the listed differences."""
    return [Known(**entry) for entry in tomllib.loads(path.read_text())["known"]]


def lost(stock: Outcomes, ours: Outcomes) -> list[str]:
    """Return the cases that pass on stock, and not on the engine.

    >>> lost(Outcomes(of={"a": "passed", "b": "passed"}), Outcomes(of={"a": "passed"}))
    ['b']
    """
    return sorted(stock.passed - ours.passed)


def reason_of(case: str, known: Sequence[Known]) -> str:
    """Return why a case is known to differ; "" when it is not.

    >>> reason_of("t/test_a.py::test_b", [Known(cases="*::test_b", reason="acknowledged late")])
    'acknowledged late'
    """
    return next((entry.reason for entry in known if entry.matches(case)), "")


def stale(known: Sequence[Known], differing: Sequence[str]) -> list[Known]:
    """Return the listed differences that are none any more."""
    return [entry for entry in known if not any(entry.matches(case) for case in differing)]
