"""Each sign of trouble is found, named, and comes with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from routing.doctor.checks import examine
from routing.doctor.snapshot import Server, Snapshot, Unacked, WorkerReport
from routing.redis.ledger import Ledger, QueueLedger
from routing.topology.live import Setting
from routing.topology.model import Topology

WORKER = WorkerReport(
    name="a@host",
    queues=("orders", "mail"),
    ahead_seconds=0.01,
    table="abc",
    lease_seconds=60.0,
    versions={"celery": "5.7.0"},
)

#: Three more are held by workers that answer, or have just begun.
SILENT = Unacked(leased=7, holders={"a@host": 2, "c@host": 4})


def snapshot(*queues: QueueLedger, **changes: Any) -> Snapshot:
    """Return a platform in good health, but for the changes."""
    ledgers = {"orders": QueueLedger(queue="orders"), "mail": QueueLedger(queue="mail")}
    ledgers |= {ledger.queue: ledger for ledger in queues}
    healthy: dict[str, Any] = {
        "table": Topology.load({"queues": {"orders": {"max_dead": 10}, "mail": {}}}),
        "digest": "abc",
        "server": Server(),
        "ledger": Ledger(server_ms=0, queues=tuple(ledgers.values())),
        "workers": [WORKER],
    }
    return Snapshot(**(healthy | changes))


def worker(**changes: Any) -> WorkerReport:
    fields = {name: getattr(WORKER, name) for name in WORKER.__slots__}
    return WorkerReport(**(fields | {"name": "b@host"} | changes))


def test_a_healthy_platform_has_nothing_to_complain_about() -> None:
    findings = examine(snapshot())
    assert [one for one in findings if one.level != "ok"] == []
    assert len(findings) == len({one.check for one in findings})


def findings_of(check: str, **changes: Any) -> list[tuple[str, str]]:
    queues = changes.pop("queues", ())
    found = examine(snapshot(*queues, **changes))
    return [(one.level, one.what) for one in found if one.check == check]


def test_a_full_queue_is_named_with_its_bound() -> None:
    table = Topology.load({"queues": {"orders": {"max_length": 2}, "mail": {}}})
    full = QueueLedger(queue="orders", waiting=2, consumers=1, counters={"refused": 50})
    assert findings_of("bounds", queues=[full], table=table) == [
        ("warn", "queue 'orders' is full: 2 of 2 messages; 50 messages refused so far")
    ]


def test_what_was_set_is_named_and_what_stops_work_is_a_warning() -> None:
    one = {"value": True, "by": "ada", "at_ms": 1}
    settings = {"orders": {"paused": Setting(**one), "weight": Setting(**(one | {"value": 3}))}}
    assert findings_of("settings", settings=settings) == [
        ("warn", "queue 'orders': paused was set to true by ada"),
        ("ok", "queue 'orders': weight was set to 3 by ada"),
    ]


def test_messages_without_a_live_consumer_are_an_error_whoever_is_silent() -> None:
    left = QueueLedger(queue="orders", waiting=5, consumers=0)
    workers = [worker(queues=("mail",))]
    assert ("error", "5 messages in queue 'orders', which no live worker consumes") in findings_of(
        "queues", queues=[left], workers=workers, unacked=SILENT
    )


def test_a_worker_that_has_no_time_to_answer_consumes_all_the_same() -> None:
    busy = QueueLedger(queue="orders", waiting=5, consumers=1)
    (found,) = findings_of("queues", queues=[busy], workers=[worker(queues=("mail",))])
    assert found[0] == "warn"


@pytest.mark.parametrize(
    ("changes", "check", "level", "says"),
    [
        ({"server": Server(version="6.0.16")}, "server", "error", "too old"),
        ({"server": Server(is_cluster=True)}, "server", "error", "cluster"),
        ({"server": Server(role="slave")}, "server", "error", "takes no writes"),
        ({"server": Server(eviction="allkeys-lru", max_bytes=9)}, "eviction", "error", "queues"),
        ({"server": Server(eviction="allkeys-lru")}, "eviction", "warn", "queues"),
        ({"server": Server(eviction="volatile-ttl")}, "eviction", "warn", "results"),
        ({"server": Server(appends=False)}, "persistence", "error", "loses every message"),
        ({"server": Server(appends=False, saves=None)}, "persistence", "warn", "snapshots"),
        ({"server": Server(fsync="no")}, "persistence", "warn", "append-only"),
        ({"server": Server(write_failed=True)}, "persistence", "error", "could not write"),
        ({"server": Server(used_bytes=80, max_bytes=100)}, "memory", "warn", "80% of maxmemory"),
        ({"server": Server(used_bytes=95, machine_bytes=100)}, "memory", "error", "machine"),
        ({"workers": [worker(ahead_seconds=-3.0)]}, "clocks", "warn", "3.0 s behind"),
        ({"here_ahead_seconds": 90.0}, "clocks", "error", "90.0 s ahead of"),
        ({"workers": []}, "workers", "error", "no worker of the engine answers"),
        ({"unacked": SILENT}, "workers", "warn", "c@host holds 4 messages and does not answer"),
        ({"unacked": SILENT}, "unacked", "warn", "4 messages in the hands of workers that do not"),
        ({"unacked": SILENT, "workers": []}, "workers", "error", "no worker of the engine answers"),
        ({"unacked": SILENT, "workers": []}, "unacked", "error", "7 messages in the hands of"),
        ({"unacked": Unacked(leased=1), "workers": []}, "unacked", "error", "1 message in the"),
        (
            {"workers": [WORKER, WorkerReport(name="s@host", is_stock=True, queues=["mail"])]},
            "workers",
            "warn",
            "s@host is a stock worker and consumes mail",
        ),
        ({"workers": [worker(queues=["mail"])]}, "queues", "warn", "'orders'"),
        ({"stranded": {"celery": 3}}, "queues", "error", "3 messages in queue 'celery'"),
        ({"overdue": {"mail": 1}}, "queues", "error", "1 delayed message of queue 'mail'"),
        ({"unacked": Unacked(expired=2)}, "unacked", "warn", "2 messages held under leases"),
        ({"unacked": Unacked(expired=2), "workers": []}, "unacked", "error", "leases that ran"),
        ({"unacked": Unacked(unleased=1)}, "unacked", "error", "without a lease"),
        ({"unacked": Unacked(stock=1, stock_overdue=1)}, "unacked", "error", "stock workers"),
        ({"visibility_seconds": 90.0}, "leases", "error", "visibility_timeout is 90 s"),
        ({"workers": [worker(lease_seconds=30.0)]}, "leases", "warn", "leases of 30 s"),
        (
            {"workers": [WORKER, worker(versions={"celery": "5.7.1"})]},
            "versions",
            "warn",
            "celery: 5.7.0 (1), 5.7.1 (1)",
        ),
        ({"workers": [worker(table="other")]}, "versions", "warn", "another queue table"),
    ],
)
def test_trouble_is_named_with_what_to_do(
    changes: dict[str, Any], check: str, level: str, says: str
) -> None:
    troubles = [one for one in examine(snapshot(**changes)) if one.level != "ok"]
    assert any(
        one.check == check and one.level == level and says in one.what and one.advice
        for one in troubles
    ), troubles


@pytest.mark.parametrize(
    ("ledger", "check", "says"),
    [
        (QueueLedger(queue="mail", counters={"accepted": 2}), "ledger", "2 messages left"),
        (QueueLedger(queue="mail", recorded=3), "ledger", "the records hold 3 messages"),
        (QueueLedger(queue="mail", counters={"results_lost": 4}), "ledger", "4 dropped tasks"),
        (QueueLedger(queue="orders", dead_letters=10), "dead letters", "oldest make room"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_named(ledger: QueueLedger, check: str, says: str) -> None:
    (trouble,) = [one for one in examine(snapshot(ledger)) if one.level != "ok"]
    assert (trouble.check, trouble.level) == (check, "warn")
    assert says in trouble.what


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"workers": [worker(queues=["mail"])]}, "error"),
        ({"workers": []}, "error"),
        ({"workers": [], "unacked": SILENT}, "error"),
        # The silent one may be a solo worker that consumes it.
        ({"workers": [worker(queues=["mail"])], "unacked": SILENT}, "warn"),
    ],
)
def test_messages_that_nobody_consumes_are_reported(changes: dict[str, Any], level: str) -> None:
    waiting = QueueLedger(queue="orders", waiting=5, counters={"accepted": 5})
    (trouble,) = [one for one in examine(snapshot(waiting, **changes)) if one.check == "queues"]
    assert (trouble.level, trouble.what) == (
        level,
        "5 messages in queue 'orders', which no worker that answers consumes",
    )


def test_what_workers_that_answer_hold_is_fine() -> None:
    findings = examine(snapshot(unacked=Unacked(leased=3, holders={"a@host": 3})))
    (unacked,) = [one for one in findings if one.check == "unacked"]
    assert (unacked.level, unacked.what) == ("ok", "3 messages in the hands of workers")


def test_silent_workers_come_with_what_solo_workers_do() -> None:
    findings = examine(snapshot(unacked=SILENT, workers=[]))
    (error,) = [one for one in findings if one.check == "workers" and one.level == "error"]
    assert "a solo worker answers only between its tasks" in error.advice
    assert "start one" in error.advice


def test_what_is_taken_over_is_promised_within_a_lease() -> None:
    findings = examine(snapshot(unacked=Unacked(expired=2)))
    (expired,) = [one for one in findings if one.check == "unacked"]
    assert "within a lease (60 s)" in expired.advice
    (leases,) = [one for one in findings if one.check == "leases"]
    assert leases.what == "the messages of a worker that dies are taken over after 60 s"


def test_dead_letters_are_no_trouble_but_are_shown() -> None:
    findings = examine(snapshot(QueueLedger(queue="orders", dead_letters=1)))
    assert [one for one in findings if one.level != "ok"] == []
    (letters,) = [one for one in findings if one.check == "dead letters"]
    assert letters.what == "1 dead letter of queue 'orders'"
    assert letters.advice == "look at them: celery -A <app> deadletter groups --queue orders"
