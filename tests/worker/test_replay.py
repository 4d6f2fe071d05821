"""Dead letters run again on a real worker."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from routing.deadletters.letter import Filter
from routing.deadletters.replay import Plan, Replay, Replayed
from routing.redis.letters import StoredLetters
from routing.transport.channel import EngineMixin
from routing.transport.gathering import Destination
from tests.support.messages import task_message
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def at(valkey: Server) -> Iterator[Station]:
    with station(valkey.fresh_url(), "gevent", 20) as running:
        yield running


def send_dying(at: Station, count: int, key: str) -> list[str]:
    """Send tasks that fail without this key, and wait until they are dead."""
    before = at.broker.length("default.dead")
    ids = [at.send("needs", key).id for _ in range(count)]
    eventually(lambda: at.broker.length("default.dead") == before + count)
    return ids


def replay(at: Station, ids: list[str], **options: float) -> Replayed:
    with at.app.connection_for_write() as connection:
        channel: EngineMixin = connection.default_channel
        stored_letters = StoredLetters(channel.plain_client, channel.commands)
        run = Replay(stored_letters, Plan(**options), forget=at.app.backend.forget)  # type: ignore[arg-type]
        return run.run(["default"], Filter(ids=ids))


def test_once_its_cause_is_gone_every_message_succeeds_under_its_id(at: Station) -> None:
    key = secrets.token_hex(4)
    ids = send_dying(at, 35, key)
    at.broker.client.set(key, "there")
    done = replay(at, ids)
    assert (done.count, len(done.died), done.stopped) == (35, 0, "")
    assert [at.app.AsyncResult(task_id).get(timeout=20) for task_id in ids] == [key] * 35


def test_as_long_as_it_is_not_the_first_wave_is_all_that_runs(at: Station) -> None:
    ids = send_dying(at, 60, secrets.token_hex(4))
    before = at.broker.ledger("default")
    done = replay(at, ids)
    assert done.count == 10
    assert "died again" in done.stopped
    eventually(lambda: at.broker.unacked() == 0)
    after = at.broker.ledger("default")
    assert after["replayed"] - before.get("replayed", 0) == 10
    assert after["dead"] - before["dead"] == 10
    dead = [letter["headers"] for letter in at.broker.dead("default")]
    assert {headers["id"] for headers in dead} >= set(ids)
    assert [headers.get("replayed") for headers in dead[-10:]] == [1] * 10


@pytest.mark.parametrize("text", ["{broken}", task_message("tests.none", headers={"id": None})])
def test_what_has_no_id_is_noticed_too_when_it_dies_again(at: Station, text: str) -> None:
    # What an earlier one has replayed dies before this begins.
    eventually(lambda: at.broker.length("default") == 0)
    at.wait_until_settled()
    at.broker.client.delete(at.broker.key("default.dead"))
    with at.app.connection_for_write() as connection:
        connection.default_channel.overflow(Destination(queue="default")).push([text] * 3)
    eventually(lambda: at.broker.length("default.dead") == 3)
    done = replay(at, [""])
    assert done.count == 3
    assert "died again" in done.stopped


def test_a_worker_that_goes_leaves_no_dead_letter_behind(at: Station) -> None:
    ids = [at.send("fail", "late").id for _ in range(50)]
    eventually(lambda: at.broker.length("default") == 0)
    at.worker.terminate()
    at.worker.start()
    eventually(lambda: set(ids) <= {one["headers"].get("id") for one in at.broker.dead("default")})
    at.wait_until_settled()
