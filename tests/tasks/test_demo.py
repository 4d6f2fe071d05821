from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from tasks.broker import answers
from tasks.demo import source
from tasks.settings import Settings
from tests.support.wait import eventually
from tests.tasks.processes import Process

LIMIT = 3_000
NEVER_DEPARTED = sum("dep_time" not in row for row in itertools.islice(source.flights(), LIMIT))

KEYS = {
    *("sent", "succeeded", "failed", "rows", "batches", "mean_batch", "seconds"),
    *("items_per_second", "urgent_count", "urgent_p50_ms", "urgent_p99_ms"),
    "queues",
}


def run_demo(environment: dict[str, str], *arguments: str) -> Any:
    finished = subprocess.run(
        [sys.executable, "-m", "tasks.demo", "--json", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def assert_exact(figures: Any, *, limit: int = LIMIT, failed: int = NEVER_DEPARTED) -> None:
    assert figures.keys() == KEYS
    assert figures["sent"] == limit
    assert figures["failed"] == failed
    assert figures["succeeded"] == figures["rows"] == limit - failed
    assert {queue: at["difference"] for queue, at in figures["queues"].items()} == {
        "realtime": 0,
        "default": 0,
        "bulk": 0,
        "webhooks": 0,
    }


def rows_in(database: str) -> int:
    engine = sa.create_engine(database)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM flights")).scalar_one())
    finally:
        engine.dispose()


def test_the_account_is_exact_on_two_runs_in_a_row_and_nothing_is_left_running(
    settings: Settings, environment: dict[str, str]
) -> None:
    for run in (1, 2):
        figures = run_demo(environment, "--limit", str(LIMIT))
        assert_exact(figures)
        assert figures["queues"]["bulk"]["dead"] == run * NEVER_DEPARTED
        assert figures["urgent_count"] > 0
        for queue in ("realtime", "bulk"):
            waits = [figures["queues"][queue][f"wait_p{percent}_ms"] for percent in (50, 95, 99)]
            assert waits == sorted(waits)
        assert 0 < figures["mean_batch"] <= 500
        assert figures["mean_batch"] == round(figures["rows"] / figures["batches"], 1)
        assert rows_in(settings.database) == figures["rows"]
        assert not answers(settings)


@pytest.mark.slow
def test_stopping_broker_and_worker_in_the_middle_loses_and_repeats_nothing(
    settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    limit = 25_000
    failed = sum("dep_time" not in row for row in itertools.islice(source.flights(), limit))
    arguments = ["tasks.demo", "--json", "--limit", str(limit)]
    with Process(arguments, environment=environment, log=tmp_path / "log") as demo:
        eventually(lambda: landed_rows(settings) > 2_000, 60)
        stop(server_of(child_of(demo, "tasks.broker")))
        before = landed_rows(settings)
        eventually(lambda: answers(settings), 60)  # the demo has started it again
        eventually(lambda: landed_rows(settings) > before, 60)
        stop(child_of(demo, "celery", "demo1"))
        assert demo.wait(150) == 0
        assert_exact(json.loads(last_line(demo.output)), limit=limit, failed=failed)
    assert rows_in(settings.database) == limit - failed


def test_a_broker_that_is_set_and_away_is_named_without_its_password(
    environment: dict[str, str],
) -> None:
    environment["CELERIAC_BROKER_URL"] = "redis://:secret@127.0.0.1:1/0"
    finished = subprocess.run(
        [sys.executable, "-m", "tasks.demo", "--limit", "10"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 1
    assert "no broker answers at redis://:**@127.0.0.1:1/0" in finished.stderr
    assert "secret" not in finished.stderr


def landed_rows(settings: Settings) -> int:
    try:
        return rows_in(settings.database)
    except sa.exc.OperationalError:
        return 0  # not made yet


def child_of(demo: Process, *words: str) -> psutil.Process:
    demo.family()
    for child in psutil.Process(demo.pid).children():
        if all(word in " ".join(child.cmdline()) for word in words):
            return child
    raise AssertionError(f"the demo has no child {words}")


def server_of(broker: psutil.Process) -> psutil.Process:
    """The server itself, which ends at once; its starter would let the clients leave first."""
    (server,) = broker.children()
    return server


def stop(process: psutil.Process) -> None:
    process.terminate()
    eventually(lambda: has_ended(process), 30)


def has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
