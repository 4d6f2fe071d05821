"""What the scenario ``life`` makes of what was written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.life.account import Findings, counts_of, repeats, runs_of
from benchmarks.life.fleet import End
from benchmarks.life.plan import PLAIN, Behaviour, Event, Message, Plan
from benchmarks.life.records import Note, Sent, Step
from benchmarks.life.report import memory_of, problems
from benchmarks.life.watch import Sample

WORKER, POOL = 100, 101
CLEAN = {"difference": 0, "waiting": 0, "delayed": 0, "unacked": 0, "recorded_unacked": 0}


def note(at: float, step: Step, *, attempt: int = 0, pid: int = POOL, number: int = 0) -> Note:
    return Note(at, number, attempt, 1, step, WORKER, pid)


def ended(at: float, cause: Event | None = Event.WORKER) -> End:
    return End(processes=frozenset({WORKER, POOL}), cause=cause, at=at, what="life0")


def findings(*notes: Note, behaviour: Behaviour = Behaviour.HEALTHY, **fields: Any) -> Findings:
    """Return what one message has left behind: by default it was done and has its result."""
    given: dict[str, Any] = {
        "plan": Plan(without=list(Event)),
        "began": 0.0,
        "drained_at": 50.0,
        "messages": [Message(0, 1.0, PLAIN, 0.1, 200, behaviour, False)],
        "sent": [Sent(1.0, 0, True, "id")],
        "notes": notes or [note(2.0, Step.STARTED), note(3.0, Step.DONE), note(3.1, Step.SETTLED)],
        "ends": [],
        "happened": [],
        "states": {0: "SUCCESS"},
        "dead": {},
        "charges": [],
        "ledger": {PLAIN: CLEAN},
        "samples": [],
        "evidence": {},
    }
    return Findings(**{**given, **fields})


def counts(found: Findings) -> dict[str, int]:
    return {name: n for name, n in counts_of(found, runs_of(found.notes)).items() if n}


def caused_and_not(found: Findings) -> tuple[dict[str, int], int]:
    caused, unexplained = repeats(found, runs_of(found.notes))
    return dict(caused), len(unexplained)


def test_a_message_that_was_done_once_is_no_problem() -> None:
    assert counts(findings()) == {}
    assert problems(findings().plan, {}, {}, {}) == []


def test_a_message_without_an_end_or_a_result_is_counted() -> None:
    lost = findings(note(2.0, Step.STARTED), states={})
    assert counts(lost) == {"never_ended": 1, "results_never_came": 1}


def test_only_what_was_sent_to_fail_may_be_a_dead_letter() -> None:
    assert counts(findings(dead={0: 1})) == {"dead_letters_of_healthy_work": 1}
    doomed = findings(behaviour=Behaviour.DOOMED, states={0: "FAILURE"}, dead={0: 1})
    assert counts(doomed) == {}
    kept = findings(behaviour=Behaviour.DOOMED, states={0: "SUCCESS"})
    assert counts(kept) == {"dead_letters_missing": 1, "wrong_results": 1}


def test_a_worker_that_ended_by_itself_is_counted() -> None:
    assert counts(findings(ends=[ended(5.0, None)])) == {"worker_deaths": 1}
    assert counts(findings(ends=[ended(5.0)])) == {}


def test_a_retry_is_an_attempt_of_its_own() -> None:
    retried = findings(
        note(2.0, Step.STARTED),
        note(3.0, Step.AGAIN),
        note(4.0, Step.STARTED, attempt=1),
        note(5.0, Step.DONE, attempt=1),
    )
    assert caused_and_not(retried) == ({}, 0)


@pytest.mark.parametrize("killed_at", [2.5, 3.5])
def test_what_was_running_or_just_over_when_it_was_killed_may_run_again(killed_at: float) -> None:
    again = [note(8.0, Step.STARTED, pid=7), note(9.0, Step.DONE, pid=7)]
    killed = findings(
        note(2.0, Step.STARTED), note(3.0, Step.DONE), *again, ends=[ended(killed_at)]
    )
    assert caused_and_not(killed) == ({"worker": 1}, 0)


def test_what_had_ended_and_was_not_settled_when_it_was_killed_may_run_again() -> None:
    ends = [note(3.0, Step.AGAIN), note(7.0, Step.SETTLED)]
    again = [note(9.0, Step.STARTED, pid=7), note(9.5, Step.DONE, pid=7)]
    killed = findings(note(2.0, Step.STARTED), *ends, *again, ends=[ended(6.0)])
    assert caused_and_not(killed) == ({"worker": 1}, 0)


@pytest.mark.parametrize(("killed_at", "unexplained"), [(6.0, 0), (8.5, 0), (9.5, 1)])
def test_an_item_may_run_again_while_others_of_its_call_are_settled(
    killed_at: float, unexplained: int
) -> None:
    call = [note(2.0, Step.STARTED, number=n) for n in (0, 1)]
    call += [note(3.0, Step.REFUSED, number=n) for n in (0, 1)]
    call += [note(3.1, Step.SETTLED), note(7.0, Step.SETTLED, number=1)]
    again = [note(11.0, Step.STARTED, pid=7), note(12.0, Step.DONE, pid=7)]
    assert caused_and_not(findings(*call, *again, ends=[ended(killed_at)]))[1] == unexplained


def test_a_run_that_ended_and_was_never_settled_is_counted_unless_it_was_hit() -> None:
    notes = [note(2.0, Step.STARTED), note(3.0, Step.DONE)]
    assert counts(findings(*notes)) == {"never_settled": 1}
    assert counts(findings(*notes, ends=[ended(6.0)])) == {}


def test_what_a_search_calls_again_is_explained_by_a_call_that_failed_as_a_whole() -> None:
    def refused(at: float, size: int) -> list[Note]:
        return [replace(note(at, step), size=size) for step in (Step.STARTED, Step.REFUSED)]

    done = [note(9.0, Step.STARTED), note(9.1, Step.DONE), note(9.2, Step.SETTLED)]
    searched = findings(*refused(2.0, 3), *refused(3.0, 1), *done)
    assert counts(searched) == {}
    assert caused_and_not(searched) == ({"search": 2}, 0)
    alone = findings(*refused(3.0, 1), *done)  # which names it
    assert counts(alone) == {"never_settled": 1, "unexplained_runs": 1}
    each = findings(*refused(3.0, 2), *done)  # as each of its items was told of
    assert counts(each) == {"never_settled": 1, "unexplained_runs": 1}


@pytest.mark.parametrize("fields", [{}, {"ends": [ended(6.0)]}, {"ends": [ended(1.0)]}])
def test_any_other_run_of_the_same_attempt_is_unexplained(fields: dict[str, Any]) -> None:
    again = [
        note(8.0, Step.STARTED, pid=7),
        note(9.0, Step.DONE, pid=7),
        note(9.1, Step.SETTLED, pid=7),
    ]
    first = [note(2.0, Step.STARTED), note(3.0, Step.DONE), note(3.1, Step.SETTLED)]
    twice = findings(*first, *again, **fields)
    assert caused_and_not(twice) == ({}, 1)
    assert counts(twice) == {"unexplained_runs": 1}


def test_what_ran_while_the_link_was_silent_may_run_again() -> None:
    again = [note(8.0, Step.STARTED, pid=7), note(9.0, Step.DONE, pid=7)]
    silent = findings(
        note(2.0, Step.STARTED),
        note(3.0, Step.DONE),
        *again,
        happened=[(Event.SILENT, 2.5, 9.0)],
    )
    assert caused_and_not(silent) == ({"silent": 1}, 0)


def test_a_retry_that_was_sent_twice_is_caused_by_what_hit_the_attempt_before() -> None:
    sent_twice = findings(
        note(2.0, Step.STARTED),
        note(3.0, Step.AGAIN),
        note(8.0, Step.STARTED, pid=7),
        note(9.0, Step.AGAIN, pid=7),
        note(9.5, Step.STARTED, attempt=1, pid=7),
        note(9.6, Step.DONE, attempt=1, pid=7),
        note(9.7, Step.STARTED, attempt=1, pid=7),
        note(9.8, Step.DONE, attempt=1, pid=7),
        ends=[ended(3.1)],
    )
    assert caused_and_not(sent_twice) == ({"worker": 2}, 0)


@pytest.mark.parametrize(
    ("cause", "unjust"), [(Event.DEPLOY, 1), (None, 1), (Event.POOL, 0), (Event.WORKER, 0)]
)
def test_only_what_was_killed_while_it_ran_may_be_charged(cause: Event | None, unjust: int) -> None:
    charged = findings(ends=[ended(2.5, cause)], charges=[("id", 4.0)])
    assert counts_of(charged, runs_of(charged.notes))["unjust_charges"] == unjust


def test_an_event_that_left_no_evidence_is_a_problem() -> None:
    plan = Plan(without=[event for event in Event if event is not Event.FULL])
    assert problems(plan, {}, {"full": {"refused_commands": 3}}, {}) == []
    (line,) = problems(plan, {}, {"full": {"refused_commands": 0}}, {})
    assert "'full' did not happen" in line


def samples(*megabytes: float, backlog: int = 0, pid: int = 1) -> list[Sample]:
    """Return a sample for each half minute of the load."""
    idle = Plan(seconds=480).idle_seconds
    return [
        Sample(
            at=idle + 30 * n + 1,
            places={"waiting": backlog},
            memory={"life0": (pid, int(size * 1e6))},
        )
        for n, size in enumerate(megabytes)
    ]


def test_memory_is_the_least_of_each_minute_and_its_growth_that_of_the_last_half() -> None:
    first_half, last_half = (50, 60, 80, 90, 70, 75, 60, 65), (99, 100, 110, 130, 105, 104, 99, 98)
    found = findings(plan=Plan(seconds=480), samples=samples(*first_half, *last_half))
    assert memory_of(found)["life0"] == {
        "mb_by_minute": [50.0, 80.0, 70.0, 60.0, 99.0, 110.0, 104.0, 98.0],
        "growth": 1.111,
    }
    assert "grew 1.111 times" in problems(Plan(without=list(Event)), {}, {}, memory_of(found))[0]


def test_a_process_that_was_replaced_is_not_judged() -> None:
    both = samples(*[80] * 12) + [
        Sample(at=one.at + 360, places=one.places, memory={"life0": (2, 10**8)})
        for one in samples(1, 1)
    ]
    found = findings(plan=Plan(seconds=480), samples=both)
    assert "growth" not in memory_of(found)["life0"]


def test_memory_is_compared_at_an_equal_backlog() -> None:
    quiet, busy = samples(80, 81, 82, 83, 84, 85, 86, 87), samples(*[10] * 8, backlog=10_000)
    found = findings(plan=Plan(seconds=480), samples=[*busy, *quiet])
    assert memory_of(found)["life0"]["mb_by_minute"] == [80.0, 82.0, 84.0, 86.0]
