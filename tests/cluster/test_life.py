"""The scenario ``life`` in small: whatever happens, every message has its one ending."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.life import report
from tests.support.worker import ROOT

SECONDS = 45

#: What a run may not leave behind: lost, doubled, wrongly dead, or a worker that ended by itself.
ZERO = {
    "dead_letters_of_healthy_work",
    "dead_letters_missing",
    "worker_deaths",
    "hung_at_deploys",
    "never_ended",
    "never_settled",
    "results_never_came",
    "wrong_results",
    "unexplained_runs",
    "unjust_charges",
    "ledger_difference",
    "misheld",
    "not_drained",
}
EVENTS = {"sink", "deploy", "full", "silent", "pool", "worker", "script", "burst"}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What a run of prefork workers reports."""
    command = [sys.executable, "-m", "benchmarks", "life", "--json", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-20_000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_life_like_load_loses_doubles_and_kills_nothing(figures: dict[str, Any]) -> None:
    assert figures["messages"] >= 10_000
    assert figures["counts"] == dict.fromkeys(ZERO, 0)


@pytest.mark.slow
def test_all_that_is_said_to_happen_did(figures: dict[str, Any]) -> None:
    assert figures["events"].keys() == EVENTS
    assert {name: any(found.values()) for name, found in figures["events"].items()} == (
        dict.fromkeys(EVENTS, True)
    )


def test_its_examples_are_true() -> None:
    assert doctest.testmod(report).failed == 0
