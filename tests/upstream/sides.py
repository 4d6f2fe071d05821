"""One run of the suite, on stock Celery or on the engine, and how its cases ended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.child import Child
from tests.upstream.compare import Outcomes
from tests.upstream.plugin import ENGINE, OUTCOMES

ROOT = Path(__file__).parents[2]

#: Each side is shared among so many processes: the suite mostly waits.
PROCESSES = 4

#: Seconds for one run; and for one case that sets no limit itself.
RUN_SECONDS = 1800
CASE_SECONDS = 300


class Side:
    """The suite in processes of its own.

    Arguments:
        name: "stock" or "ours".
        suite: the directory of the unpacked suite; logs go beside it.
    """

    def __init__(self, name: str, suite: Path) -> None:
        self.name = name
        self._suite = suite
        self._log = suite.parent / f"{name}.log"
        self._path = suite.parent / f"{name}.jsonl"

    def run(self, cases: Sequence[str] = ("t/integration",)) -> Outcomes:
        """Run what pytest is to collect, by default the whole suite; returns how its cases ended.

        Raises:
            RuntimeError: the run did not come to its end.
        """
        self._path.unlink(missing_ok=True)
        command = [*self._command(), *cases]
        child = Child(command, log=self._log, cwd=self._suite, env=self._environment())
        try:
            child.start().wait(RUN_SECONDS)
        finally:
            child.kill()  # with all that it started
        return self._read()

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-q"]
        command += ["-p", "tests.upstream.plugin", "-p", "no:cacheprovider"]
        command += ["-p", "no:rerunfailures"]  # what differs is run again, by us, on both sides
        command += ["-n", str(PROCESSES), "--dist", "worksteal", f"--timeout={CASE_SECONDS}"]
        # What needs packages that are not here is not collected, on neither side.
        return [*command, "--continue-on-collection-errors"]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            # The suite starts "celery" by its name, and imports itself as "t".
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self._suite.resolve())]),
            # As upstream's own runs of it: some cases look at the worker's log.
            "WORKER_LOGLEVEL": "INFO",
            ENGINE: "1" if self.name == "ours" else "0",
            OUTCOMES: str(self._path.resolve()),
        }

    def _read(self) -> Outcomes:
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        if not lines or "end" not in lines[-1]:
            raise RuntimeError(f"{self.name}: the suite did not end by itself; see {self._log}")
        return of_phases(lines[:-1])


def of_phases(phases: Sequence[Mapping[str, str]]) -> Outcomes:
    """Return the outcome of each case from those of its phases; the worst one counts.

    >>> setup, call = {"case": "a", "outcome": "passed"}, {"case": "a", "outcome": "skipped"}
    >>> of_phases([setup, call, setup]).of
    {'a': 'skipped'}
    """
    outcomes: dict[str, str] = {}
    texts: dict[str, str] = {}
    for phase in phases:
        case, outcome = phase["case"], phase["outcome"]
        if outcome == "failed":
            texts.setdefault(case, phase["text"])
        if outcome == "failed" or outcomes.get(case, "passed") == "passed":
            outcomes[case] = outcome
    return Outcomes(of=outcomes, texts=texts)
