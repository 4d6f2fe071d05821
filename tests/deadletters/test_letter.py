from __future__ import annotations

import json
import pickle
import traceback
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.deadletters.letter import Filter, contents_of, grouped, revived
from routing.deadletters.replay import BIGGEST_WAVE, Plan
from routing.errors import DeadLetter, NotEditable
from routing.message.codec import raw_of, wrap
from routing.message.evidence import (
    MESSAGE_AT_MOST,
    TRACEBACK_AT_MOST,
    Evidence,
    fingerprint_of,
    of_error,
)
from routing.message.letter import Letter, parse
from tests.support.messages import task_message


def dead_text(evidence: Evidence, **options: Any) -> bytes:
    """Return the text of a letter, as the broker makes it."""
    why = '{"at":2000,"deliveries":1,' + evidence.rest()
    ours = f',"celeriac":{{"at":1000,"dead":{why}}}}}'
    return (task_message(**options)[:-1] + ours).encode()


def tracebacks_of(depth: int) -> str:
    def fall(n: int) -> None:
        if n:
            fall(n - 1)
        raise ValueError("deep")

    try:
        fall(depth)
    except ValueError:
        return traceback.format_exc()
    raise AssertionError


# -- evidence ---------------------------------------------------------------------------------


def test_evidence_has_no_empty_fields_and_no_opening_brace() -> None:
    assert Evidence(reason="failed", task="t").rest() == '"reason":"failed","task":"t"}'


@given(st.text(), st.text())
def test_whatever_an_exception_says_survives(message: str, task: str) -> None:
    evidence = of_error("failed", ValueError(message), task=task, task_id="x")
    letter = parse("q", dead_text(evidence, task=task, message_id="x"))
    assert (letter.message, letter.task) == (message[:MESSAGE_AT_MOST], task[:255])
    assert (letter.at_ms, letter.first_ms, letter.id) == (2000, 1000, "x")


def test_long_texts_are_cut_a_traceback_at_its_beginning() -> None:
    long = tracebacks_of(200) + "x" * TRACEBACK_AT_MOST
    evidence = of_error("failed", ValueError("y" * 10_000), traceback=long)
    assert len(evidence.message) == MESSAGE_AT_MOST
    assert evidence.traceback == long[-TRACEBACK_AT_MOST:]


@pytest.mark.parametrize("name", [None, 7, ["a"], {"b": 1}, "z" * 10_000])
def test_a_hostile_task_name_is_only_text(name: Any) -> None:
    evidence = of_error("unknown_task", KeyError(name), task=name, task_id=name)
    assert isinstance(evidence.task, str)
    assert len(evidence.task) <= 255


def test_an_exception_without_a_text_has_a_dead_letter_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "RuntimeError" in of_error("failed", Mute()).message


def test_a_fingerprint_is_that_of_the_applications_frame_and_not_of_its_line() -> None:
    frame = '  File "/{}/shop/orders.py", line {}, in charge\n'
    library = '  File "/env/lib/python3.11/site-packages/bank.py", line 9, in pay\n'
    first = fingerprint_of("E", "1", frame.format("srv", 12) + library)
    assert first == fingerprint_of("E", "2", frame.format("home/me", 99))
    assert first != fingerprint_of("F", "1", frame.format("srv", 12))
    assert first != fingerprint_of("E", "1", library)


def test_without_a_frame_the_message_without_its_numbers_counts() -> None:
    assert fingerprint_of("E", "row 17", "") == fingerprint_of("E", "row 4", "")
    assert fingerprint_of("E", "row 17", "") != fingerprint_of("E", "column 17", "")


def test_a_dead_letter_survives_pickle_and_says_its_reason() -> None:
    error = pickle.loads(pickle.dumps(DeadLetter("no hope")))
    assert isinstance(error, DeadLetter)
    assert str(error) == "no hope"


# -- letters ----------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200))
def test_whatever_lies_among_dead_letters_is_a_letter(text: bytes) -> None:
    letter = parse("q", text)
    assert letter.payload == text
    assert revived(letter, queue="q")


@pytest.mark.parametrize(
    "text", ["[]", "1", '"x"', "null", '{"headers": 1}', '{"celeriac": {"dead": 1}}', "[" * 100_000]
)
def test_odd_texts_are_letters_without_a_reason(text: str) -> None:
    assert parse("q", text.encode()).reason == ""


def test_a_filter_without_fields_takes_everything() -> None:
    assert Filter()(Letter(queue="q", payload=b""))


def test_groups_are_by_cause_the_biggest_first() -> None:
    letters = [
        Letter(queue="q", payload=b"", task="a", fingerprint="1", id=str(n), at_ms=n)
        for n in (3, 1)
    ]
    letters += [Letter(queue="q", payload=b"", task="a", fingerprint="2", at_ms=5)] * 3
    big, small = grouped(letters)
    assert (big.count, small.count) == (3, 2)
    assert (small.first_at_ms, small.last_at_ms, small.id) == (1, 3, "3")


def test_a_revived_message_has_all_its_retries_again_and_no_times_that_have_passed() -> None:
    headers = {"retries": 3, "eta": "2020-01-01T00:00:00", "expires": "2020-01-01T00:00:00"}
    letter = parse("q", dead_text(Evidence(reason="failed"), headers=headers, message_id="x"))
    message = json.loads(revived(letter, queue="q"))
    assert (message["headers"]["retries"], message["headers"]["id"]) == (0, "x")
    assert message["headers"]["eta"] is message["headers"]["expires"] is None
    assert message["headers"]["replayed"] == 1
    assert "celeriac" not in message


def test_replays_are_counted() -> None:
    letter = parse("q", dead_text(Evidence(reason="failed"), headers={"replayed": 2}))
    assert letter.replayed == 2
    assert json.loads(revived(letter, queue="q"))["headers"]["replayed"] == 3


def test_a_replayed_message_still_says_when_it_was_first_sent() -> None:
    text = dead_text(Evidence(reason="failed"))
    for _ in range(2):
        letter = parse("q", text)
        assert letter.first_ms == 1000
        again = revived(letter, queue="q")[:-1].decode()
        text = f'{again},"celeriac":{{"at":1500,"dead":{{"at":1600}}}}}}'.encode()


def test_a_replay_is_not_taken_for_the_first_time_when_that_is_unknown() -> None:
    assert parse("q", dead_text(Evidence(reason="failed"), headers={"replayed": 1})).first_ms == 0


@pytest.mark.parametrize(
    "raw",
    [b"\xff no message", b"{broken}", b'{"valid": "but no message"}', b"[1]", b"", b"[" * 100_000],
)
def test_an_entry_that_was_no_message_is_known_again_when_it_dies_again(raw: bytes) -> None:
    stamps = b',"celeriac":{"at":1},"celeriac":{"at":2,"redelivered":true}}'
    stamped = raw[:-1] + stamps if raw[-1:] == b"}" else raw
    first, second = (parse("q", wrap(entry, queue="q").encode()) for entry in (raw, stamped))
    again = contents_of(revived(first, queue="q"))
    assert contents_of(first.payload) == contents_of(second.payload) == again
    assert again != contents_of(b"another")


def test_a_message_without_an_id_is_known_again_by_what_it_carries() -> None:
    letter = parse("q", dead_text(Evidence(reason="failed"), args=(1,), headers={"id": None}))
    edited = revived(letter, queue="other", args=[2])
    assert contents_of(revived(letter, queue="q")) == contents_of(letter.payload)
    assert contents_of(edited) != contents_of(letter.payload)
    assert contents_of(edited) == contents_of(revived(parse("other", edited), queue="q"))


def test_an_id_that_looks_like_a_glob_fits_itself() -> None:
    assert Filter(ids=["[x"])(Letter(queue="q", payload=b"", id="[x"))
    assert Filter(ids=["a[b]"])(Letter(queue="q", payload=b"", id="a[b]"))


@pytest.mark.parametrize("edit", [{"args": [1]}, {"kwargs": {"a": 1}}])
def test_arguments_that_are_nested_too_deeply_are_not_edited(edit: Any) -> None:
    for depth in (*range(900, 1_000), 100_000):
        body = f"[[{'[' * depth}{']' * depth}], {{}}, {{}}]"
        letter = parse("q", dead_text(Evidence(reason="failed"), body=body))
        with suppress(NotEditable):
            assert revived(letter, queue="q", **edit)
    with pytest.raises(NotEditable, match="nested too deeply"):
        revived(letter, queue="q", **edit)


def test_an_entry_that_was_no_message_is_revived_as_it_was() -> None:
    raw = b"\xff no message"
    text = wrap(raw, queue="q")
    assert raw_of(json.loads(text)) == raw
    assert revived(parse("q", text.encode()), queue="q") == raw


@pytest.mark.parametrize(
    "text",
    [wrap(b"raw", queue="q"), task_message(body="no json"), task_message(body="[1]")],
    ids=["raw", "no JSON", "another shape"],
)
def test_arguments_that_cannot_be_read_are_not_edited(text: str) -> None:
    with pytest.raises(NotEditable):
        revived(parse("q", text.encode()), queue="q", args=[1])


# -- replay -----------------------------------------------------------------------------------


@given(st.integers(0, 50), st.floats(0.1, 5_000), st.integers(0, 500))
def test_a_wave_is_never_bigger_than_its_bounds(number: int, rate: float, replayed: int) -> None:
    plan = Plan(rate=rate, most=500)
    wave = plan.wave(number, replayed)
    assert wave <= min(BIGGEST_WAVE, 500 - replayed)
    assert wave / plan.seconds(wave) <= rate * 1.001
