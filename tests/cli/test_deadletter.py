from __future__ import annotations

import json
import shlex
from importlib.metadata import entry_points
from typing import Any

import pytest
from celery import Celery, states
from celery.bin.celery import celery
from click.testing import CliRunner, Result

from routing.cli.deadletter import deadletter
from routing.deadletters import replay
from routing.message.codec import wrap
from routing.message.evidence import of_error
from routing.redis.letters import StoredLetters
from routing.transport.channel import EngineMixin
from routing.transport.gathering import Destination
from tests.cli.conftest import Run
from tests.support.broker import Broker
from tests.support.messages import ids_of, task_message
from tests.support.wait import elapse, eventually

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/orders.py", line 12, in charge
    raise ValueError("declined")
ValueError: declined
"""


@pytest.fixture(autouse=True)
def _short_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WAVE_SECONDS", 0.02)


def kill(
    channel: EngineMixin,
    *ids: str,
    queue: str = "bulk",
    task: str = "shop.charge",
    error: Exception | None = None,
    args: tuple[Any, ...] = (7,),
    body: str | None = None,
    traceback: str = TRACEBACK,
) -> None:
    """Let messages with these ids die."""
    for task_id in ids:
        channel.overflow(Destination(queue=queue)).push(
            [task_message(task, args, queue=queue, message_id=task_id, body=body)]
        )
        message = channel.basic_get(queue)
        assert message is not None
        message.ending = "failed"
        message.evidence = of_error(
            "failed",
            error or ValueError("declined"),
            traceback=traceback,
            task=task,
            task_id=task_id,
            attempts=3,
            worker="w1@shop",
        )
        message.ack()


def kill_raw(broker: Broker, raw: bytes) -> None:
    """Put an entry that is no message among the dead letters, as a worker does."""
    seconds, micros = broker.client.time()
    rest = of_error("undecodable", ValueError("no message")).rest()
    why = f'{{"at":{seconds * 1000 + micros // 1000},"deliveries":1,{rest}'
    text = f'{wrap(raw, queue="bulk")[:-1]},"celeriac":{{"dead":{why}}}}}'
    broker.client.lpush("bulk.dead", text)


def rows(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def listed(run: Run, *filters: str) -> list[str]:
    return [row["id"] for row in rows(run(deadletter, "list", "--json", *filters))]


def test_the_command_is_one_of_celery() -> None:
    (entry,) = entry_points(group="celery.commands", name="deadletter")
    assert entry.load() is deadletter


def test_letters_are_listed_newest_first(run: Run, channel: EngineMixin) -> None:
    kill(channel, "one", "two")
    output = run(deadletter, "list").output
    assert [line.split()[0] for line in output.splitlines()] == ["two", "failed", "one", "failed"]
    assert "bulk  shop.charge  3 attempts" in output
    assert "failed  ValueError: declined" in output
    assert run(deadletter, "list", "-Q", "low").output == "no dead letters\n"
    assert run(deadletter, "list", "-Q", "low", "--json").output == ""


def now(channel: EngineMixin) -> int:
    """Return the server's clock in milliseconds."""
    return StoredLetters(channel.plain_client, channel.commands).now_ms()


def test_the_newest_of_all_queues_are_listed(run: Run, channel: EngineMixin) -> None:
    for task_id, queue in (("a", "bulk"), ("b", "low"), ("c", "bulk"), ("d", "low")):
        kill(channel, task_id, queue=queue)
        died = now(channel)
        eventually(lambda died=died: now(channel) > died)
    assert listed(run) == ["d", "c", "b", "a"]
    assert listed(run, "--limit", "2") == ["d", "c"]


def test_a_list_says_what_it_leaves_out(run: Run, channel: EngineMixin) -> None:
    kill(channel, *"abcde")
    result = run(deadletter, "list", "--limit", "2")
    assert "and 3 more dead letters" in result.stderr
    assert "celery deadletter groups" in result.stderr
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (("--queue", "bulk"), {"a", "b"}),
        (("--queue", "low.dead"), {"c"}),
        (("-Q", "bulk,low.dead"), {"a", "b", "c"}),
        (("-Q", "bulk, bulk", "-Q", "bulk"), {"a", "b"}),
        (("--task", "shop.ch*"), {"a", "c"}),
        (("--exception", "LookupError"), {"b"}),
        (("--exception", "KeyError", "--exception", "Look*"), {"b"}),
        (("--exception", "TimeoutError"), set()),
        (("--reason", "failed"), {"a", "b", "c"}),
        (("--reason", "poison"), set()),
        (("--id", "a", "--id", "c"), {"a", "c"}),
        (("--since", "1h"), {"a", "b", "c"}),
        (("--until", "1h"), set()),
        (("--until", "2000-01-01"), set()),
        (("--task", "shop.*", "--queue", "bulk", "--exception", "ValueError"), {"a"}),
    ],
)
def test_filters_choose(
    run: Run, channel: EngineMixin, filters: tuple[str, ...], expected: set[str]
) -> None:
    kill(channel, "a")
    kill(channel, "b", task="shop.find", error=LookupError("gone"))
    kill(channel, "c", queue="low")
    assert set(listed(run, *filters)) == expected


def test_groups_count_what_has_one_cause(run: Run, channel: EngineMixin) -> None:
    kill(channel, "a", "b", "c")
    kill(channel, "d", error=LookupError("gone"))
    first, second = rows(run(deadletter, "groups", "--json"))
    assert (first["count"], first["exception"], first["id"]) == (3, "ValueError", "c")
    assert (second["count"], second["message"]) == (1, "gone")
    assert set(listed(run, "--fingerprint", first["fingerprint"])) == {"a", "b", "c"}
    output = run(deadletter, "groups").output
    assert "3  bulk  shop.charge" in output
    assert f"--fingerprint {first['fingerprint']}" in output


def test_a_letter_is_shown_with_all_that_is_known(run: Run, channel: EngineMixin) -> None:
    kill(channel, "one")
    output = run(deadletter, "show", "one").output
    for known in (
        "shop.charge",
        "(7,) {}",
        "attempts     3",
        "deliveries   1",
        "w1@shop",
        "orders.py",
    ):
        assert known in output
    assert json.loads(run(deadletter, "show", "one", "--raw").output)["headers"]["id"] == "one"
    missing = run(deadletter, "show", "other")
    assert missing.exit_code == 1
    assert "no dead letter has the id other" in missing.output
    assert run(deadletter, "show").exit_code == 2


def test_what_a_list_prints_for_a_letter_without_an_id_shows_it(run: Run, broker: Broker) -> None:
    kill_raw(broker, b"{broken}")
    broker.client.lpush("bulk.dead", "put here by somebody")
    for line in run(deadletter, "list").output.splitlines()[::2]:
        handle = shlex.split(line)[:2]
        assert handle[0] == "--fingerprint"
        output = run(deadletter, "show", *handle).output
        assert output.count("id           none") == 1
    assert "no id" not in run(deadletter, "groups").output


def test_a_shortened_traceback_begins_with_a_whole_line(run: Run, channel: EngineMixin) -> None:
    frame = '  File "/srv/shop/orders.py", line 12, in charge\n'
    kill(channel, "long", traceback=TRACEBACK + frame * 500)
    kill(channel, "short")
    lines = run(deadletter, "show", "long").output.partition("\n\n")[2].splitlines()
    assert lines[:2] == ["    ...", f"    {frame.rstrip()}"]
    assert "..." not in run(deadletter, "show", "short").output


def test_advice_names_the_app_of_the_command(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery.bin.celery.find_app", lambda _: app)
    result = CliRunner().invoke(celery, ["-A", "shop", "deadletter", "show", "other"])
    assert "celery -A shop deadletter list" in result.output


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's backend
def test_replaying_puts_messages_back_and_forgets_their_results(
    run: Run, app: Celery, channel: EngineMixin, broker: Broker
) -> None:
    kill(channel, "a", "b", "c")
    app.backend.mark_as_failure("a", ValueError("declined"))
    result = run(deadletter, "replay", "--id", "a", "--id", "b")
    assert result.exit_code == 0
    assert result.output == "replayed 2 dead letters; none died again so far\n"
    assert ids_of(broker.payloads("bulk")) == ["a", "b"]
    assert ids_of(broker.payloads("bulk.dead")) == ["c"]
    assert app.AsyncResult("a").state == states.PENDING
    assert broker.ledger("bulk")["replayed"] == 2


def test_a_dry_run_changes_nothing(run: Run, channel: EngineMixin, broker: Broker) -> None:
    kill(channel, "a", "b")
    for verb in ("replay", "purge"):
        result = run(deadletter, verb, "--all", "--dry-run")
        assert result.output.startswith(f"would {verb} 2 dead letters:")
    (row,) = rows(run(deadletter, "replay", "--all", "--dry-run", "--max", "1", "--json"))
    assert row == {"would_replay": 1}
    first = run(deadletter, "replay", "--all", "--dry-run", "--max", "1").output
    assert "for example a" in first
    assert broker.length("bulk.dead") == 2
    assert broker.length("bulk") == 0


@pytest.mark.parametrize("verb", ["replay", "purge"])
def test_without_a_filter_nothing_is_touched(
    run: Run, channel: EngineMixin, broker: Broker, verb: str
) -> None:
    kill(channel, "a")
    result = run(deadletter, verb)
    assert result.exit_code == 2
    assert "--all" in result.output
    assert broker.length("bulk.dead") == 1


@pytest.mark.parametrize(
    "command", [("replay",), ("purge",), ("replay", "--dry-run"), ("purge", "--dry-run")]
)
def test_an_id_that_no_letter_has_is_an_error(
    run: Run, channel: EngineMixin, command: tuple[str, ...]
) -> None:
    kill(channel, "a")
    result = run(deadletter, *command, "--id", "b")
    assert result.exit_code == 1
    assert "no dead letter has the id b" in result.stderr
    assert run(deadletter, *command, "--task", "b").exit_code == 0


def test_editing_a_letter_that_is_not_there_is_the_same_error(run: Run) -> None:
    result = run(deadletter, "replay", "--id", "b", "--args", "[1]")
    assert result.exit_code == 1
    assert "no dead letter has the id b" in result.stderr


def test_a_letter_that_lies_about_its_times_is_shown(run: Run, broker: Broker) -> None:
    headers = {"replayed": 1, "first_sent_ms": 10**30}
    broker.client.lpush("bulk.dead", task_message(message_id="liar", headers=headers))
    assert "sent at an unknown time" in run(deadletter, "show", "liar").output


def test_a_replay_keeps_to_its_number_and_its_rate(
    run: Run, channel: EngineMixin, broker: Broker
) -> None:
    kill(channel, *map(str, range(12)))
    assert run(deadletter, "replay", "--all", "--max", "3").exit_code == 0
    assert ids_of(broker.payloads("bulk")) == ["0", "1", "2"]
    plan = replay.Plan(rate=5)
    assert (plan.wave(3, 0), plan.seconds(1)) == (1, 0.2)


def test_a_replay_stops_when_messages_die_again(
    run: Run, channel: EngineMixin, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(channel, *map(str, range(50)))

    def work_badly(seconds: float) -> None:
        while message := channel.basic_get("bulk"):
            message.ending = "failed"
            message.evidence = of_error("failed", ValueError("still declined"))
            message.ack()
        elapse(seconds)

    monkeypatch.setattr(replay.time, "sleep", work_badly)
    monkeypatch.setattr(replay, "WAVE_SECONDS", 1.0)
    result = run(deadletter, "replay", "--all")
    assert result.exit_code == 1
    assert "stopped: 10 of 10 replayed messages died again" in result.stderr
    assert "still declined" in result.stderr
    assert "look at it: celery deadletter show " in result.stderr
    assert broker.length("bulk.dead") == 50
    assert broker.ledger("bulk")["replayed"] == 10


def test_what_has_no_id_and_dies_again_is_noticed(
    run: Run, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_raw(broker, b"{broken}")

    def work_badly(seconds: float) -> None:
        while raw := broker.client.rpop("bulk"):
            kill_raw(broker, raw.encode() if isinstance(raw, str) else raw)
        elapse(seconds)

    monkeypatch.setattr(replay.time, "sleep", work_badly)
    monkeypatch.setattr(replay, "WAVE_SECONDS", 1.0)
    result = run(deadletter, "replay", "--all")
    assert result.exit_code == 1
    assert "stopped: 1 of 1 replayed messages died again" in result.stderr
    assert "show --fingerprint " in result.stderr


def test_a_replay_may_go_to_another_queue(run: Run, channel: EngineMixin, broker: Broker) -> None:
    kill(channel, "a")
    assert run(deadletter, "replay", "--all", "--to", "low").exit_code == 0
    assert ids_of(broker.payloads("low")) == ["a"]
    assert run(deadletter, "replay", "--all", "--to", "nowhere").exit_code == 2


def test_the_arguments_of_one_message_can_be_edited(
    run: Run, channel: EngineMixin, broker: Broker
) -> None:
    kill(channel, "a", "b")
    edit = ("--args", "[8]", "--kwargs", '{"currency": "EUR"}')
    assert "name it by --id" in run(deadletter, "replay", "--queue", "bulk", *edit).output
    assert run(deadletter, "replay", "--id", "a", *edit).exit_code == 0
    message = channel.basic_get("bulk")
    assert message is not None
    args, kwargs, _ = message.payload
    assert (args, kwargs) == ([8], {"currency": "EUR"})
    assert message.headers["argsrepr"] == "(8,)"
    channel.basic_ack(message.delivery_tag)


def test_arguments_nested_too_deeply_are_not_edited_and_nothing_is_lost(
    run: Run, channel: EngineMixin, broker: Broker
) -> None:
    deep = f"[[{'[' * 5_000}{']' * 5_000}], {{}}, {{}}]"
    kill(channel, "a", body=deep)
    result = run(deadletter, "replay", "--id", "a", "--kwargs", "{}")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: its arguments are nested too deeply to be edited; the letter stays where it is"
    ]
    assert (broker.length("bulk.dead"), broker.length("bulk")) == (1, 0)


def test_purging_drops_what_is_meant_and_counts_it(
    run: Run, channel: EngineMixin, broker: Broker
) -> None:
    kill(channel, "a", "b", "c")
    assert rows(run(deadletter, "purge", "--id", "b", "--json")) == [{"purged": 1}]
    assert ids_of(broker.payloads("bulk.dead")) == ["a", "c"]
    assert run(deadletter, "purge", "--all").output == "purged 2 dead letters\n"
    assert broker.ledger("bulk")["dead_trimmed"] == 3


def test_a_queue_that_is_none_is_refused_with_a_hint(run: Run) -> None:
    result = run(deadletter, "list", "-Q", "bullk")
    assert result.exit_code == 2
    assert "did you mean 'bulk'?" in result.output
