"""A database behind a batch task that breaks in every way: each item has one row or one grave."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from routing.message import letter as deadletter
from tests.apps.sink import LEASE_SECONDS
from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import elapse, eventually, throughout

MEGABYTE = 1024 * 1024


@contextmanager
def scene(valkey: Server, directory: Path, **options: Any) -> Iterator[Scene]:
    with Scene(valkey.fresh_url(), directory, **options) as running:
        yield running


def test_a_sink_that_fails_and_is_away_loses_nothing(valkey: Server, tmp_path: Path) -> None:
    with scene(valkey, tmp_path) as at:
        sent = at.send_many("load", *range(300))
        bad = at.send_many("load", *range(-9, 0))
        sent |= at.send_many("load", *range(300, 400))
        eventually(at.sink.rows, 30)
        at.sink.away.touch()
        elapse(3)
        assert at.ledger().difference == 0
        assert len(at.sink.rows()) < len(sent)
        at.sink.away.unlink()
        book = at.wait_until_all_ended()
        assert at.sink.rows() == sent
        assert (book["done"], book["dead"]) == (len(sent), len(bad))
        letters = [
            deadletter.parse("default", text.encode())
            for text in at.broker.payloads("default.dead")
        ]
    assert {letter.id for letter in letters} == set(bad)
    now_ms = time.time() * 1000
    for letter in letters:
        assert (letter.reason, letter.exception) == ("failed", "sqlite3.IntegrityError")
        assert letter.attempts >= 1
        assert now_ms - 120_000 < letter.first_ms <= letter.at_ms


def test_connections_that_are_cut_again_and_again_bury_nothing_twice(
    valkey: Server, tmp_path: Path
) -> None:
    with scene(valkey, tmp_path) as at:
        database = int(at.broker.url.rpartition("/")[2])
        sent: dict[str, int] = {}
        bad: dict[str, int] = {}
        for start in range(0, 400, 20):
            sent |= at.send_many("load", *range(start, start + 20))
            bad |= at.send_many("load", -start - 1, -start - 2)
            valkey.kill_clients(database)
            elapse(0.1)
        book = at.wait_until_all_ended()
        assert at.sink.rows() == sent
        assert (book["done"], book["dead"]) == (len(sent), len(bad))
        letters = [letter["headers"]["id"] for letter in at.broker.dead("default")]
    assert sorted(letters) == sorted(bad)


def test_a_process_that_is_killed_between_the_write_and_its_ack_leaves_one_row(
    valkey: Server, tmp_path: Path
) -> None:
    with scene(valkey, tmp_path, concurrency=1) as at:
        sent = at.send_many("insert_and_die", *range(10))
        book = at.wait_until_all_ended()
        assert at.traces.client.exists("died")
        assert at.sink.rows() == sent
        assert max(Counter(at.sink.writes()).values()) == 2
        assert book["done"] == len(sent)


@pytest.mark.parametrize("task", ["insert", "insert_batch"])
def test_a_worker_that_is_killed_between_the_write_and_its_ack_leaves_one_row(
    valkey: Server, tmp_path: Path, task: str
) -> None:
    with scene(valkey, tmp_path, concurrency=1) as at:
        message = at.send(task, 7)
        eventually(lambda: at.traces.counts("started") == {message: 1}, 30)
        at.worker.kill()
        at.worker.start()
        book = at.wait_until_all_ended(timeout=60)
        assert at.sink.rows() == {message: 7}
        assert at.sink.writes() == [message, message]
        assert (book["done"], book["reclaimed"]) == (1, 1)


def test_a_write_of_several_leases_is_not_repeated(valkey: Server, tmp_path: Path) -> None:
    with scene(valkey, tmp_path) as at:
        receipts = at.app.tasks["sink.insert_slowly"].delay_many(range(20))
        book = at.wait_until_all_ended(timeout=30 + 8 * LEASE_SECONDS)
        sent = {receipt.id: number for number, receipt in enumerate(receipts)}
        assert at.sink.rows() == sent
        assert sorted(at.sink.writes()) == sorted(sent)
        assert (book["done"], book["reclaimed"], book["given_back"]) == (len(sent), 0, 0)


def test_big_messages_take_a_bounded_part_of_the_memory(valkey: Server, tmp_path: Path) -> None:
    payload = secrets.token_hex(MEGABYTE // 2)
    with scene(valkey, tmp_path, concurrency=1) as at:
        limit_rate(at, "sink.weigh", "1/h")
        at.send("weigh", "first", queue="heavy")
        eventually(lambda: at.traces.total() == 1)
        before = memory(at)
        at.app.tasks["sink.weigh"].delay_many([payload] * 80, queue="heavy")
        eventually(lambda: at.broker.unacked("heavy"))
        throughout(lambda: at.broker.unacked("heavy") <= 4, 1)
        assert at.broker.length("heavy") >= 76
        peak = memory(at)
        limit_rate(at, "sink.weigh", "0")
        while at.traces.total() < 81:
            peak = max(peak, memory(at))
            assert at.broker.unacked("heavy") <= 4, "4 MiB, and one message more; each has 1.4 MB"
        book = at.wait_until_all_ended("heavy")
    assert book["done"] == 81
    assert peak - before < 50 * MEGABYTE, "without a bound it is 290 MB"


def limit_rate(at: Scene, task: str, rate: str) -> None:
    assert at.app.control.rate_limit(task, rate, reply=True, timeout=10, limit=1)


def memory(at: Scene) -> int:
    """Return the memory of the process that holds the messages."""
    size: int = psutil.Process(at.worker.pid).memory_info().rss
    return size
