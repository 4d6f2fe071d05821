from __future__ import annotations

import logging

import pytest

from routing.transport.drops import Drops
from tests.support.wait import eventually


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    records = [r.__dict__ for r in caplog.records if r.name == "routing.transport.drops"]
    assert all(record["event"] == "messages_dropped" for record in records)
    return [(record["queue"], record["count"]) for record in records]


def test_the_first_drop_is_told_at_once_and_the_others_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    drops = Drops(interval_seconds=0.2)
    for _ in range(5):
        drops.note("a", "drop_oldest", 2)
    assert lines(caplog) == [("a", 2)]
    eventually(lambda: lines(caplog) == [("a", 2), ("a", 8)])
    assert "queue 'a' is full: 8 messages dropped (overflow = drop_oldest)" in caplog.text


def test_each_queue_has_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops(interval_seconds=60)
    drops.note("a", "drop_oldest", 1)
    drops.note("b", "drop_newest", 1)
    assert lines(caplog) == [("a", 1), ("b", 1)]


def test_the_end_of_the_process_tells_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops(interval_seconds=60)
    drops.note("a", "drop_oldest", 1)
    drops.note("a", "drop_oldest", 3)
    drops.flush()
    drops.flush()
    assert lines(caplog) == [("a", 1), ("a", 3)]
    assert caplog.records[0].levelno == logging.WARNING
