"""Users of the server that may not do everything: what the engine needs, and what it can miss."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.users import KEYS, NEEDED, SPARED, User, celery
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def user(valkey: Server) -> User:
    return User(valkey, *NEEDED, *KEYS)


@pytest.fixture(scope="module")
def at(user: User) -> Iterator[Station]:
    with station(user.url, "threads", 4, store=user.admin_url) as running:
        yield running


def test_a_worker_starts_without_what_is_only_looked_at(at: Station, user: User) -> None:
    assert user.refused() <= SPARED
    assert "may not run INFO, so nobody looked whether" in at.worker.log
    assert "may not do what the engine needs" not in at.worker.log


def test_the_listed_commands_are_enough_for_a_messages_whole_life(at: Station, user: User) -> None:
    results = [
        at.send("add", 1, 2),
        at.send("add", 1, 2, countdown=0.2),
        at.send("add", 1, 2, priority=6),
        at.send("retried", "again", 2),
    ]
    assert at.app.tasks["basic.add"].apply_many([((1, 2), {})] * 20).accepted == 20
    assert [result.get(timeout=20) for result in results[:3]] == [3, 3, 3]
    eventually(lambda: at.traces.counts().get("again") == 3)
    lost = at.send("needs", "key")
    eventually(lambda: at.broker.length("default.dead") == 1)
    at.broker.client.set("key", "there")
    replayed = celery(user.url, "deadletter", "replay", "--queue", "default")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    eventually(lambda: at.broker.length("default.dead") == 0)
    assert lost.get(timeout=20) == "key"
    assert at.app.control.purge() == 0
    at.stop_consuming("low")
    at.consume("low")
    at.wait_until_settled()
    assert user.refused() <= SPARED


@pytest.mark.parametrize(
    "command",
    [["queues"], ["queues", "--verify"], ["deadletter", "list"], ["deadletter", "groups"]],
)
def test_commands_need_no_more(at: Station, user: User, command: list[str]) -> None:
    done = celery(user.url, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert user.refused() <= SPARED


def test_the_doctor_says_what_it_could_not_look_at(at: Station, user: User) -> None:
    done = celery(user.url, "doctor", "--json")
    findings = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    for check in ("server", "eviction", "persistence", "memory"):
        assert findings[check]["level"] == "warn"
        assert "may not run INFO" in findings[check]["what"]
    assert findings["permissions"]["level"] == "ok"
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert user.refused() <= SPARED


def test_a_worker_names_a_command_that_it_needs_and_may_not_run(valkey: Server) -> None:
    user = User(valkey, *NEEDED, "-zmscore")
    env = {"CELERIAC_TEST_STORE": user.admin_url}
    with station(user.url, "threads", 1, store=user.admin_url, env=env) as at:
        at.worker.wait_log("may not do what the engine needs: zmscore; allow it: ACL SETUSER")
