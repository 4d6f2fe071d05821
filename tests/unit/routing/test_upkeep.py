"""The thread that does a worker's upkeep."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from routing.upkeep import _Runner


class Job:
    """A job that notes that it ran."""

    interval_seconds = 0.01

    def __init__(self) -> None:
        self.ran = threading.Event()

    def run(self, channel: Any) -> None:
        self.ran.set()


def test_upkeep_goes_on_after_whatever_a_connection_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [RuntimeError("a riddle")]

    def connect() -> Any:
        if errors:
            raise errors.pop()
        return nullcontext(SimpleNamespace(default_channel=None))

    job = Job()
    runner = _Runner(SimpleNamespace(connection_for_read=connect), [job])
    assert job.ran.wait(20)
    runner.stop()
    assert "upkeep cannot connect" in caplog.text
