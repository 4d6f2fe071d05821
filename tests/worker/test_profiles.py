"""Two ways to bound a queue under the same load: only the latest counts, or nothing may be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import eventually

SERVICE_SECONDS = 0.1
PRODUCED_EACH_SECONDS = 0.001
RELIABLE = 40


@pytest.fixture
def at(valkey: Server, tmp_path: Path) -> Iterator[Scene]:
    """A worker that gives each of the two queues one slot."""
    options = ["--pool", "threads", "--queues", "latest,reliable"]
    with Scene(valkey.fresh_url(), tmp_path, pool="threads", options=options) as at:
        yield at


def ages(at: Scene, series: str) -> list[float]:
    return [float(age) for age in at.traces.client.lrange(f"ages:{series}", 0, -1)]


def test_under_one_load_the_latest_is_fresh_and_the_reliable_complete(at: Scene) -> None:
    ended = threading.Event()
    sent = 0

    def produce() -> None:
        nonlocal sent
        while not ended.wait(PRODUCED_EACH_SECONDS):
            at.send("sample", time.monotonic(), "latest", queue="latest")
            sent += 1

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        for _ in range(RELIABLE):
            at.send("sample", time.monotonic(), "reliable", queue="reliable")
        eventually(lambda: len(ages(at, "latest")) >= RELIABLE, 30)
    finally:
        ended.set()
        producer.join(10)

    reliable = at.wait_until_all_ended("reliable")
    assert (reliable["accepted"], reliable["done"]) == (RELIABLE, RELIABLE)
    assert (reliable["dropped"], reliable["refused"]) == (0, 0)
    assert len(ages(at, "reliable")) == RELIABLE

    latest = at.wait_until_all_ended("latest")
    assert latest["accepted"] == sent == latest["done"] + latest["dropped"]
    assert latest["dropped"] > latest["done"] == len(ages(at, "latest"))
    # One in ten may meet a moment at which a busy machine did something else.
    found = sorted(ages(at, "latest"))
    assert found[len(found) * 9 // 10] <= SERVICE_SECONDS + 0.05, found
