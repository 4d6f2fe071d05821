from __future__ import annotations

import dataclasses

import pytest

from routing.redis.ledger import Ledger, QueueLedger
from tasks.demo.account import Account, percentile

BULK = QueueLedger(queue="bulk", counters={"accepted": 1_000, "done": 990, "dead": 10})
GOOD = Account(
    sent=1_000,
    succeeded=990,
    failed=10,
    rows=990,
    batches=2,
    rows_by_batches=990,
    seconds=0.5,
    urgent_ms=[1.0, 2.0, 3.0],
    ledger=Ledger(server_ms=0, queues=(BULK,)),
    waits={"bulk": {3: 900, 40: 60, 1200: 40}},
)


def test_an_account_that_balances_has_no_differences() -> None:
    assert GOOD.differences() == []
    assert GOOD.as_json() == {
        "sent": 1_000,
        "succeeded": 990,
        "failed": 10,
        "rows": 990,
        "batches": 2,
        "mean_batch": 495.0,
        "seconds": 0.5,
        "items_per_second": 2_000.0,
        "urgent_count": 3,
        "urgent_p50_ms": 2.0,
        "urgent_p99_ms": 3.0,
        "queues": {
            "bulk": {
                "accepted": 1_000,
                "done": 990,
                "failed": 0,
                "dead": 10,
                "dropped": 0,
                "difference": 0,
                "wait_p50_ms": 3,
                "wait_p95_ms": 40,
                "wait_p99_ms": 1_200,
            }
        },
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"failed": 9}, "sent 1,000, but succeeded 990 + failed 9 = 999"),
        ({"rows": 991, "rows_by_batches": 991}, "succeeded 990, but the table has 991 rows"),
        ({"rows_by_batches": 1_490}, "the batches inserted 1,490, but the table has 990 rows"),
    ],
)
def test_what_does_not_balance_is_named(change: dict[str, int], complaint: str) -> None:
    assert dataclasses.replace(GOOD, **change).differences() == [complaint]


def test_a_queue_whose_ledger_does_not_add_up_is_named() -> None:
    lost = dataclasses.replace(BULK, counters={"accepted": 1_003, "done": 990, "dead": 10})
    account = dataclasses.replace(GOOD, ledger=Ledger(server_ms=0, queues=(lost,)))
    assert account.differences() == ["queue 'bulk': 3 messages are missing"]


def test_a_run_without_urgent_answers_has_no_percentiles() -> None:
    figures = dataclasses.replace(GOOD, urgent_ms=[]).as_json()
    assert (figures["urgent_count"], figures["urgent_p50_ms"]) == (0, None)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 50) == 50.0
    assert percentile(values, 99) == 99.0
    assert percentile(values, 100) == 100.0
    assert percentile([], 50) is None


def test_the_summary_shows_the_figures_a_reader_looks_for() -> None:
    text = GOOD.as_text()
    for shown in (
        "1,000",
        "990 rows in the table",
        "495.0 rows",
        "2,000 items/s",
        "3.0 ms",
        "bulk",
    ):
        assert shown in text


def test_the_summary_shows_the_waits_of_each_queue() -> None:
    line = next(line for line in GOOD.as_text().splitlines() if line.startswith("  bulk  "))
    assert line.split() == ["bulk", "1,000", "3", "40", "1,200"]


def test_a_queue_in_which_nothing_started_has_no_waits() -> None:
    figures = dataclasses.replace(GOOD, waits={}).as_json()["queues"]["bulk"]
    assert [figures[f"wait_p{percent}_ms"] for percent in (50, 95, 99)] == [None] * 3


def test_the_summary_says_how_to_look_at_dead_letters() -> None:
    assert "deadletter" not in GOOD.as_text()
    dead = dataclasses.replace(BULK, dead_letters=10)
    account = dataclasses.replace(GOOD, ledger=Ledger(server_ms=0, queues=(dead,)))
    text = account.as_text(celery=".venv/bin/celery")
    assert "10 dead letters wait in queue bulk.dead" in text
    assert ".venv/bin/celery -A tasks deadletter groups --queue bulk" in text
