"""``celery queues set``, ``reset`` and ``settings``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery

from routing.cli.queues import queues
from routing.errors import SettingRefused
from routing.redis.consumers import Consumer
from routing.settings import queue_settings, reset_queue, set_queue, settings_log
from routing.transport.channel import EngineMixin
from routing.transport.gathering import Destination
from tests.apps import batches
from tests.apps.basic import close
from tests.cli.conftest import Run
from tests.cli.test_queues import figures, row
from tests.support.broker import Broker
from tests.support.messages import numbered


def listed(run: Run, *options: str) -> list[dict[str, Any]]:
    result = run(queues, "settings", "--json", *options)
    assert result.exit_code == 0
    return [json.loads(line) for line in result.stdout.splitlines()]


def announced(channel: EngineMixin, *names: str, slots: int = 2, seconds: float = 60) -> None:
    worker = str(Consumer("bell", slots, "w@host"))
    channel.commands.announce(channel.plain_client, worker, names, seconds=seconds)


def test_a_setting_is_listed_with_who_when_and_what_it_was(run: Run) -> None:
    done = run(queues, "set", "fast", "prefetch=4", "weight=3", "rate=50/s", "--by", "ada")
    assert done.exit_code == 0
    assert done.output == (
        "fast: prefetch 4 (was 16), weight 3 (was 1), rate 50/s (was none); "
        "no live worker consumes it now\n"
    )
    run(queues, "set", "fast", "prefetch=5", "--by", "bob")
    first, second, third = sorted(listed(run), key=lambda one: str(one["field"]))
    assert (first["field"], first["value"], first["table"]) == ("prefetch", 5, 16)
    assert (first["was"], first["by"]) == (4, "bob")
    assert (second["field"], second["value"], second["by"]) == ("rate", "50/s", "ada")
    assert (third["value"], third["was"]) == (3, 1)
    shown = run(queues, "settings")
    assert shown.exit_code == 0
    assert "UTC" in shown.output
    assert "bob" in shown.output


def test_who_sets_it_is_this_user_by_default(run: Run) -> None:
    run(queues, "set", "fast", "paused=true")
    assert "@" in listed(run)[0]["by"]


def test_a_reset_lets_the_table_hold_again(run: Run) -> None:
    run(queues, "set", "fast", "prefetch=4", "weight=3", "paused=true", "limit=2")
    assert run(queues, "reset", "fast", "prefetch").output == (
        "fast: as in the table again: prefetch 16\n"
    )
    run(queues, "set", "fast", "weight=none", "limit=")
    assert [one["field"] for one in listed(run)] == ["paused"]
    run(queues, "reset", "fast")
    assert listed(run) == []
    assert run(queues, "settings").output == (
        "nothing is set: the queue table holds for every queue\n"
    )
    assert "the table holds already" in run(queues, "reset", "fast", "prefetch").output


def test_every_change_is_in_the_log_the_newest_first(run: Run) -> None:
    run(queues, "set", "fast", "prefetch=4", "--by", "ada")
    run(queues, "reset", "fast", "--by", "bob")
    newest, oldest = listed(run, "--log")
    assert (newest["value"], newest["was"], newest["by"]) == (None, 4, "bob")
    assert (oldest["value"], oldest["was"], oldest["by"]) == (4, 16, "ada")
    assert newest["at_ms"] >= oldest["at_ms"]


def test_the_log_keeps_the_last_hundred(app: Celery) -> None:
    for number in range(110):
        set_queue(app, "fast", weight=number + 1)
    log = settings_log(app)
    assert len(log) == 100
    assert log[0].value == 110
    assert queue_settings(app)["fast"]["weight"].before == 109


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fsat", "weight=2"), "'fsat' is no queue of the table, did you mean 'fast'?"),
        (("fast", "wieght=2"), "field 'wieght' is unknown, did you mean 'weight'?"),
        (("fast", "max_length=2"), "field 'max_length' is the table's alone"),
        (("fast", "weight=0"), "weight must be at least 1, got 0"),
        (("fast", "paused=yes"), "paused must be true or false, got 'yes'"),
        (("fast", "weight"), "expected FIELD=VALUE, such as prefetch=16, got 'weight'"),
        (("fast", "lend_below=1"), "lend_below needs a reserve"),
        (("fast",), "Missing argument"),
    ],
)
def test_what_cannot_be_used_is_refused_before_it_is_stored(
    run: Run, app: Celery, arguments: tuple[str, ...], says: str
) -> None:
    result = run(queues, "set", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert queue_settings(app) == {}


@pytest.mark.parametrize("queue", [5, None, b"fast", ["fast"]])
def test_what_is_no_name_of_a_queue_is_refused(app: Celery, queue: Any) -> None:
    for call in (lambda: set_queue(app, queue, weight=3), lambda: reset_queue(app, queue)):
        with pytest.raises(SettingRefused, match="must be the name of a queue of the table, got"):
            call()


def test_reserves_above_the_slots_of_a_live_worker_are_refused(
    app: Celery, channel: EngineMixin
) -> None:
    announced(channel, "fast", "slow", slots=2)
    set_queue(app, "fast", reserve=2)
    with pytest.raises(SettingRefused) as caught:
        set_queue(app, "slow", reserve=1)
    assert "must be at most the concurrency of w@host (2), got 3 (slow 1, fast 2)" in str(
        caught.value
    )
    set_queue(app, "bulk", reserve=1)  # that worker does not consume it


def test_a_prefetch_below_a_batch_is_refused(broker_url: str) -> None:
    app = batches.create(broker_url)
    try:
        with pytest.raises(SettingRefused, match=r"prefetch must be at least max_size \(50\)"):
            set_queue(app, "default", prefetch=10)
        assert queue_settings(app) == {}
    finally:
        close(app)


def test_a_setting_of_another_version_stays_and_is_no_obstacle(app: Celery, broker: Broker) -> None:
    text = '{"shape": {"value": 3, "by": "new", "at_ms": 1, "before": null}}'
    broker.client.hset("celeriac:settings", "fast", text)
    assert set_queue(app, "fast", weight=4).weight == 4
    assert set(queue_settings(app)["fast"]) == {"shape", "weight"}


def test_what_was_set_for_a_queue_that_has_left_the_table_can_be_reset(
    run: Run, app: Celery, broker: Broker
) -> None:
    text = '{"drain": {"value": true, "by": "me", "at_ms": 1, "before": false}}'
    broker.client.hset("celeriac:settings", "gone", text)
    broker.client.set("celeriac:draining:gone", "1")
    assert [one["queue"] for one in listed(run)] == ["gone"]
    assert run(queues, "reset", "gone").exit_code == 0
    assert listed(run) == []
    assert not broker.client.exists("celeriac:draining:gone")
    assert run(queues, "reset", "gone").exit_code == 2


def test_a_full_queue_says_so_with_its_bound(run: Run, channel: EngineMixin) -> None:
    overflow = channel.overflow(Destination(queue="small"))
    overflow.push(numbered(3, queue="small"))
    announced(channel, "small")
    cells = row(run(queues), "small")
    assert "3/3" in cells
    assert cells[-1] == "full"
    at = figures(run(queues, "--json"), "small")
    assert (at["max_length"], at["full"], at["state"], at["consumers"]) == (3, True, "full", 1)


@pytest.mark.parametrize(
    ("field", "waiting", "state"),
    [
        ("paused", 1, "paused"),
        ("drain", 1, "draining"),
        ("drain", 0, "drained"),
    ],
)
def test_what_was_set_is_a_state(
    run: Run, app: Celery, channel: EngineMixin, field: str, waiting: int, state: str
) -> None:
    channel.overflow(Destination(queue="fast")).push(numbered(waiting, queue="fast"))
    announced(channel, "fast")
    set_queue(app, "fast", **{field: True})
    assert figures(run(queues, "--json"), "fast")["state"] == state
    assert row(run(queues), "fast")[-1] == state


def test_messages_that_nobody_consumes_are_a_state(run: Run, channel: EngineMixin) -> None:
    channel.overflow(Destination(queue="fast")).push(numbered(1, queue="fast"))
    assert figures(run(queues, "--json"), "fast")["state"] == "no consumer"
    announced(channel, "fast")
    assert figures(run(queues, "--json"), "fast")["state"] == "ok"
    announced(channel, "fast", seconds=0)
    assert figures(run(queues, "--json"), "fast")["state"] == "no consumer"


def test_the_help_shows_options_and_commands(run: Run) -> None:
    text = run(queues, "--help").output
    assert "--verify" in text
    assert all(name in text for name in ("set", "reset", "settings"))
