"""The scenario ``crash`` in small: whatever is killed, each item has one row or one dead letter."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import pytest

from benchmarks import crash
from tests.support.worker import ROOT


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_whatever_is_killed() -> None:
    command = [sys.executable, "-m", "benchmarks", "crash", "--size", "1000", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-20_000:]
    figures = json.loads(done.stdout)["cases"]["crash"]
    assert (figures["rows"], figures["dead_letters"], figures["difference"]) == (990, 10, 0)
    assert figures["killed_brokers"] == 2


def test_its_verdict_names_what_is_missing_or_doubled() -> None:
    assert doctest.testmod(crash).failed == 0
