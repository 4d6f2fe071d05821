from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import Result

from routing import install
from routing.cli.queues import queues, table_lines
from routing.redis.ledger import Ledger, QueueLedger
from routing.transport.channel import EngineMixin
from routing.transport.gathering import Destination
from tests.cli.conftest import Run
from tests.support.broker import Broker
from tests.support.messages import numbered, task_message

ROOT = Path(__file__).parent.parent.parent


def row(result: Result, queue: str) -> list[str]:
    """Return the cells of a queue's first row."""
    return next(line.split() for line in result.output.splitlines() if line.startswith(queue))


def figures(result: Result, queue: str) -> Any:
    rows = json.loads(result.stdout)["queues"]
    return next(one for one in rows if one["queue"] == queue)


def test_the_command_is_one_of_celery() -> None:
    (entry,) = entry_points(group="celery.commands", name="queues")
    assert entry.load() is queues


def test_every_queue_of_the_table_has_a_row(run: Run, app: Celery) -> None:
    result = run(queues)
    assert result.exit_code == 0
    first, *rows = result.output.splitlines()
    assert " ".join(first.split()) == "queue waiting fill unacked accepted done difference state"
    assert [line.split()[0] for line in rows] == list(app.amqp.queues)
    assert all(line.endswith("ok") for line in rows)


def test_the_figures_of_a_queue_are_shown(run: Run, channel: EngineMixin) -> None:
    channel.overflow(Destination(queue="bulk")).push(numbered(5, queue="bulk"))
    channel.basic_get("bulk")
    channel.basic_ack(channel.basic_get("bulk").delivery_tag)  # type: ignore[union-attr]
    at = figures(run(queues, "--json"), "bulk")
    assert (at["waiting"], at["unacked"], at["accepted"], at["done"]) == (3, 1, 5, 1)
    assert (at["difference"], at["incomplete"]) == (0, False)
    assert at["oldest_seconds"] >= 0
    assert row(run(queues), "bulk")[:4] == ["bulk", "3", "-", "1"]


def test_one_object_has_every_figure_also_those_that_are_nothing(run: Run) -> None:
    everything = json.loads(run(queues, "--json").stdout)
    assert everything["incomplete"] is False
    assert everything["server_ms"] > 0
    known = {"delayed", "dead", "dropped", "purged", "retried", "ignored", "overshoot", "reclaimed"}
    assert known <= everything["queues"][0].keys()


def test_only_the_queues_that_were_named_are_shown(run: Run) -> None:
    rows = json.loads(run(queues, "--json", "-Q", "fast,low").stdout)["queues"]
    assert [one["queue"] for one in rows] == ["fast", "low"]


def test_a_queue_that_is_not_in_the_table_is_refused_by_name(run: Run) -> None:
    result = run(queues, "-Q", "bluk")
    assert result.exit_code == 2
    assert "'bluk' is no queue of the table, did you mean 'bulk'?" in result.output


def test_messages_that_came_uncounted_make_a_queue_incomplete_until_booked(
    run: Run, broker: Broker
) -> None:
    broker.client.lpush("fast", task_message(), task_message())
    shown = run(queues)
    assert row(shown, "fast")[-4:] == ["-2", "no", "consumer,", "INCOMPLETE"]
    assert "fast: 2 messages came uncounted" in shown.output
    assert shown.exit_code == 0

    booked = run(queues, "--rebase", "--json")
    assert booked.stderr == "fast: booked +2 as unaccounted\n"
    at = figures(booked, "fast")
    assert (at["unaccounted"], at["difference"], at["incomplete"]) == (2, 0, False)


def test_a_rebase_leaves_queues_that_balance_alone(run: Run, channel: EngineMixin) -> None:
    channel.overflow(Destination(queue="bulk")).push(numbered(2, queue="bulk"))
    assert run(queues, "--rebase").stderr == "every queue adds up: there is nothing to book\n"
    assert "unaccounted" not in channel.plain_client.hgetall("celeriac:ledger:bulk")


def test_what_is_dropped_makes_a_queue_incomplete(run: Run, broker: Broker) -> None:
    broker.client.hset("celeriac:ledger:low", mapping={"accepted": 4, "dropped": 4})
    shown = run(queues)
    assert row(shown, "low")[-2:] == ["0", "INCOMPLETE"]
    assert "low: 4 messages dropped by the queue's overflow policy" in shown.output


def test_verifying_says_whether_the_records_agree(
    run: Run, channel: EngineMixin, broker: Broker
) -> None:
    channel.overflow(Destination(queue="bulk")).push(numbered(3, queue="bulk"))
    message = channel.basic_get("bulk")
    assert message is not None
    agreed = run(queues, "--verify")
    assert "what is unacknowledged agrees with the records" in agreed.output

    broker.client.hdel("unacked", message.delivery_tag)
    shown = run(queues, "--verify")
    assert "bulk: the records hold 0 messages unacknowledged, the ledger says 1" in shown.output
    booked = run(queues, "--rebase").stderr
    assert booked == "bulk: booked -1 as unaccounted, -1 as unacked\n"
    assert figures(run(queues, "--verify", "--json"), "bulk")["incomplete"] is False


def test_watching_shows_it_again_until_interrupted(broker_url: str) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", "queues"]
    with subprocess.Popen(
        [*command, "--watch", "0.1", "--json", "-Q", "fast"],
        env={**os.environ, "CELERIAC_TEST_BROKER": broker_url, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        shown = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
    times = [one["server_ms"] for one in shown]
    assert times == sorted(set(times))


def test_a_rebase_is_not_repeated_by_watching(run: Run) -> None:
    assert run(queues, "--watch", "--rebase").exit_code == 2


def test_a_broker_that_is_away_is_named_without_its_password(run: Run) -> None:
    away = Celery("away", broker="redis://:secret@127.0.0.1:1/0", set_as_current=False)
    install(away, {"queues": {"q": {}}})
    result = run(queues, of=away)
    assert result.exit_code == 69
    assert "redis://:**@127.0.0.1:1/0 does not answer" in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("broker", "table", "reason"),
    [
        ("redis://127.0.0.1:1/0", None, "app 'other' has no queue table"),
        ("memory://", {"queues": {"q": {}}}, "is not Redis or Valkey"),
    ],
)
def test_an_app_without_the_engine_is_told_what_is_missing(
    run: Run, broker: str, table: Any, reason: str
) -> None:
    other = Celery("other", broker=broker, set_as_current=False)
    if table is not None:
        install(other, table)
    result = run(queues, of=other)
    assert result.exit_code == 2
    assert reason in result.output


def test_a_table_fits_its_width_in_as_many_blocks_as_it_takes() -> None:
    counters = ("accepted", "done", "failed", "retried", "dead", "purged", "expired", "ignored")
    million = dict.fromkeys((*counters, "reclaimed", "dropped"), 10**6)
    full = QueueLedger(queue="full", waiting=10**6, counters=million)
    ledger = Ledger(server_ms=0, queues=(full, QueueLedger(queue="empty")))
    shown = list(table_lines(ledger, width=80))
    assert max(map(len, shown)) <= 80
    assert shown[0].split()[:3] == ["queue", "waiting", "unacked"]
    assert shown[1].endswith("INCOMPLETE")
    # An empty queue has a row in the first block only.
    assert [line for line in shown if line.startswith("empty")] == [shown[2]]
    words = " ".join(shown).split()
    assert {"accepted", "dead", "dropped", "ignored", "reclaimed"} <= set(words)


def test_the_dead_letters_that_are_kept_are_shown_where_some_have_left() -> None:
    for left, title in ((0, False), (2, True)):
        counters = {"accepted": 5 - left, "dead": 5, "replayed": left}
        queue = QueueLedger(queue="q", dead_letters=5 - left, counters=counters)
        header = next(table_lines(Ledger(server_ms=0, queues=(queue,)), width=100))
        assert ("dead letters" in header) is title


def test_rates_are_those_between_two_readings() -> None:
    before = Ledger(server_ms=0, queues=(QueueLedger(queue="q", counters={"accepted": 10}),))
    now = QueueLedger(queue="q", waiting=20, counters={"accepted": 110, "done": 80})
    after = Ledger(server_ms=2_000, queues=(now,))
    header, cells = (line.split() for line in table_lines(after, width=100, before=before))
    shown = dict(zip(header, cells, strict=True))
    assert (shown["in/s"], shown["out/s"]) == ("50", "40")
