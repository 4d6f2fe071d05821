from __future__ import annotations

import json
from typing import Any

import pytest

from routing.deadletters.letter import revived
from routing.message.evidence import Evidence
from routing.message.letter import Letter
from routing.redis.letters import Move, StoredLetters
from routing.redis.values import Burial
from tests.support.messages import ids_of, numbered, task_message
from tests.support.rig import Rig

WHY = Evidence(reason="failed", exception="ValueError")


@pytest.fixture
def stored_letters(rig: Rig) -> StoredLetters:
    return StoredLetters(rig.client, rig.commands)


def kill(rig: Rig, count: int, queue: str = "q", **options: Any) -> None:
    """Let messages "1", "2", ... die."""
    rig.push(numbered(count, queue=queue), queue, **options)
    burials = [Burial(a.tag, WHY.rest()) for a in rig.fetch(queue=queue)]
    rig.commands.bury(rig.client, queue, burials)


def replay(stored_letters: StoredLetters, letters: list[Letter], to: str = "q") -> list[Letter]:
    return stored_letters.move([Move(one, revived(one, queue=to)) for one in letters], to=to)


def all_letters(stored_letters: StoredLetters, queue: str = "q") -> list[Letter]:
    return stored_letters.walk(queue, lambda _: True).next(1000)


def test_letters_are_read_from_both_ends(rig: Rig, stored_letters: StoredLetters) -> None:
    kill(rig, 450)
    assert [one.id for one in stored_letters.newest("q")] == [str(n) for n in range(450, 0, -1)]
    walk = stored_letters.walk("q", lambda one: int(one.id) % 100 == 0)
    assert [one.id for one in walk.next(3)] == ["100", "200", "300"]
    assert [one.id for one in walk.next(3)] == ["400"]
    assert walk.next(3) == []


def test_the_newest_of_several_queues_come_first(rig: Rig, stored_letters: StoredLetters) -> None:
    def put(queue: str, **times: int) -> None:
        for name, at_ms in times.items():
            why = f',"celeriac":{{"dead":{{"at":{at_ms}}}}}}}'
            text = task_message(queue=queue, message_id=name)[:-1] + why
            rig.client.lpush(f"{rig.commands.keys.dead(queue)}", text)

    put("q", a=10, c=30, unknown=0, e=50)
    put("other", b=20, d=40)
    found = [one.id for one in stored_letters.newest_of(["q", "other"])]
    assert found == ["e", "unknown", "d", "c", "b", "a"]


def test_a_walk_misses_nothing_when_letters_are_taken_out_on_the_way(
    rig: Rig, stored_letters: StoredLetters
) -> None:
    kill(rig, 500)
    walk, seen = stored_letters.walk("q", lambda one: int(one.id) % 2 == 0), []
    while letters := walk.next(30):
        walk.taken(len(replay(stored_letters, letters)))
        seen += [int(one.id) for one in letters]
    assert seen == list(range(2, 501, 2))
    assert stored_letters.count("q") == 250


def test_replayed_messages_stand_at_the_back_of_their_queue(
    rig: Rig, stored_letters: StoredLetters
) -> None:
    kill(rig, 3)
    rig.push(numbered(2, first=10))
    rig.take_bell()
    replayed = replay(stored_letters, all_letters(stored_letters)[:2])
    assert [one.id for one in replayed] == ["1", "2"]
    assert rig.ready_ids() == ["10", "11", "1", "2"]
    assert ids_of(rig.broker.payloads("q.dead")) == ["3"]
    assert rig.bells() == 1


def test_a_replayed_message_is_the_one_that_was_sent(
    rig: Rig, stored_letters: StoredLetters
) -> None:
    rig.push(numbered(1))
    before = json.loads(rig.broker.payloads("q")[0])
    (arrival,) = rig.fetch()
    rig.commands.bury(rig.client, "q", [Burial(arrival.tag, WHY.rest())])
    replay(stored_letters, all_letters(stored_letters))
    after = json.loads(rig.broker.payloads("q")[0])
    assert after["celeriac"].keys() == {"at"}
    sent_ms = before.pop("celeriac")["at"]
    assert after["celeriac"]["at"] >= sent_ms
    del after["celeriac"]
    assert after["headers"].pop("replayed") == 1
    assert after["headers"].pop("first_sent_ms") == sent_ms
    for spent in ("retries", "eta", "expires"):
        after["headers"].pop(spent)
    assert after == before


def test_a_letter_is_replayed_once_however_many_ask(
    rig: Rig, stored_letters: StoredLetters
) -> None:
    kill(rig, 2)
    letters = all_letters(stored_letters)
    assert len(replay(stored_letters, letters[:1])) == 1
    assert [one.id for one in replay(stored_letters, letters)] == ["2"]
    assert rig.ready_ids() == ["1", "2"]


def test_letters_go_to_the_list_of_their_priority(rig: Rig, stored_letters: StoredLetters) -> None:
    kill(rig, 1)
    (letter,) = all_letters(stored_letters)
    message = json.loads(letter.payload)
    message["properties"]["priority"] = 6
    urgent = Letter(queue="q", payload=letter.payload, priority=6)
    stored_letters.move([Move(urgent, json.dumps(message).encode())], to="q")
    assert ids_of(rig.broker.payloads("q", step=6)) == ["1"]


def test_letters_can_go_to_another_queue(rig: Rig, stored_letters: StoredLetters) -> None:
    kill(rig, 2)
    replay(stored_letters, all_letters(stored_letters), to="other")
    assert rig.ready_ids("other") == ["1", "2"]
    routes = [
        json.loads(text)["properties"]["delivery_info"] for text in rig.broker.payloads("other")
    ]
    assert {route["routing_key"] for route in routes} == {"other"}
    assert rig.broker.ledger("other")["replayed"] == 2
    assert "replayed" not in rig.broker.ledger("q")


def test_a_full_queue_takes_replayed_messages_and_counts_them(
    rig: Rig, stored_letters: StoredLetters
) -> None:
    kill(rig, 3, "small")
    rig.push(numbered(2, queue="small", first=10), "small")
    replay(stored_letters, all_letters(stored_letters, "small"), to="small")
    assert len(rig.ready_ids("small")) == 5
    assert rig.broker.ledger("small")["overshoot"] == 2


def test_dropped_letters_are_counted(rig: Rig, stored_letters: StoredLetters) -> None:
    kill(rig, 3)
    assert (
        len(stored_letters.move([Move(one) for one in all_letters(stored_letters)[:2]], to="q"))
        == 2
    )
    assert ids_of(rig.broker.payloads("q.dead")) == ["3"]
    assert rig.ready_ids() == []
    assert rig.broker.ledger("q")["dead_trimmed"] == 2


def test_the_ledger_balances_after_a_replay(rig: Rig, stored_letters: StoredLetters) -> None:
    kill(rig, 3)
    replay(stored_letters, all_letters(stored_letters)[:2])
    rig.settle(rig.fetch(1))
    ledger = rig.broker.ledger("q")
    assert ledger["accepted"] + ledger["replayed"] == ledger["dead"] + ledger["done"] + 1
    assert rig.broker.waiting_bytes("q") == sum(len(text) for text in rig.broker.payloads("q"))
