"""What became of every message: runs, the counts that must be 0, and what the run itself caused.

An attempt is a message's number and how often it was tried before; it is to run once. A further run
of it is *caused* when an earlier one was hit: its process was ended by the run while it ran (or so
shortly after, that its end was not known yet), or the link was silent then. Any other is
*unexplained*. Pure.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.life.fleet import End
from benchmarks.life.plan import Behaviour, Event, Message, Plan
from benchmarks.life.records import Note, Sent, Step
from benchmarks.life.watch import Sample

FINAL = (Step.DONE, Step.FAILED)

#: What was settled so shortly before it was hit may not have been acknowledged.
MARGIN_SECONDS = 2.0

#: So long a run may take to be settled when it has ended: a hundred retries on a busy machine.
SETTLING_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that a run has left behind; times are of the machine's clock.

    Attributes:
        began: when the plan's time 0 was.
        drained_at: when nothing was left at the broker, None when that did not come.
        happened: each event with its begin and when it should have been healed.
        states: final state of each message by its number.
        dead: how often each message is among the dead letters.
        worker_deaths: what the run did not cause, a sentence each.
        charges: messages that were charged a delivery, by id, and when that was seen.
        ledger: the ledger of each queue.
        samples: what was seen once a second.
        refused: how often the producer had to send again.
    """

    plan: Plan
    began: float
    drained_at: float | None
    messages: Sequence[Message]
    sent: Sequence[Sent]
    notes: Sequence[Note]
    ends: Sequence[End]
    happened: Sequence[tuple[Event, float, float]]
    states: Mapping[int, str]
    dead: Mapping[int, int]
    charges: Sequence[tuple[str, float]]
    ledger: Mapping[str, Mapping[str, Any]]
    samples: Sequence[Sample]
    evidence: Mapping[str, Mapping[str, Any]]
    refused: int = 0


@dataclass(slots=True)
class Run:
    """One run of one attempt; `answered` is when all items of its call had been settled."""

    number: int
    attempt: int
    size: int
    parent: int
    pid: int
    started: float
    ended: float | None = None
    step: Step | None = None
    settled: float | None = None
    answered: float | None = None
    #: Its call failed without naming it, so it was called again to find out whose fault that was.
    is_searched: bool = False


def runs_of(notes: Iterable[Note]) -> list[Run]:
    """Return all runs in the order of their starts; a note ends the run of its process."""
    runs: list[Run] = []
    open_: dict[tuple[int, int, int], Run] = {}
    over: dict[tuple[int, int, int], Run] = {}
    for note in notes:
        key = (note.pid, note.number, note.attempt)
        if note.step is Step.STARTED:
            run = Run(note.number, note.attempt, note.size, note.parent, note.pid, note.at)
            runs.append(run)
            open_[key] = run
        elif note.step is Step.SETTLED:
            if run_ := over.pop(key, None):
                run_.settled = note.at
        elif run_ := open_.pop(key, None):
            run_.ended, run_.step = note.at, note.step
            over[key] = run_
    _mark_searched(runs)
    calls: dict[tuple[int, float], list[Run]] = defaultdict(list)
    for run in runs:
        calls[run.pid, run.started].append(run)
    for call in calls.values():
        settled = [run.settled for run in call if run.settled is not None]
        if len(settled) == len(call):
            for run in call:  # a batch is answered as a whole, when its last item is settled
                run.answered = max(settled)
    return runs


def _mark_searched(runs: Iterable[Run]) -> None:
    """Mark the runs of calls that failed as a whole, of which a search was made.

    That does not settle its items; of those that it calls alone, it settles who is at fault.
    """
    searched: set[tuple[int, int]] = set()
    for run in runs:
        was_raised = run.step is Step.REFUSED and run.size % 2 == 1  # as the app does it
        key = (run.number, run.attempt)
        if was_raised and run.settled is None and (run.size > 1 or key in searched):
            run.is_searched = True
            searched.add(key)


def counts_of(found: Findings, runs: Sequence[Run]) -> dict[str, int]:
    """Return the counts that must be 0."""
    doomed = {m.number for m in found.messages if m.behaviour is Behaviour.DOOMED}
    sent = {one.number for one in found.sent}
    ended = {run.number for run in runs if run.step in FINAL}
    wrong = {
        number
        for number, state in found.states.items()
        if state != ("FAILURE" if number in doomed else "SUCCESS")
    }
    return {
        "dead_letters_of_healthy_work": sum(
            count for number, count in found.dead.items() if number not in doomed
        ),
        "dead_letters_missing": len((doomed & sent) - found.dead.keys()),
        "worker_deaths": sum(end.cause is None for end in found.ends),
        "hung_at_deploys": int(found.evidence.get(Event.DEPLOY, {}).get("overdue_workers", 0)),
        "never_ended": len(sent - ended),
        "results_never_came": len(sent - found.states.keys()),
        "wrong_results": len(wrong),
        "unexplained_runs": len(repeats(found, runs)[1]),
        "never_settled": sum(
            run.ended is not None
            and run.settled is None
            and not run.is_searched
            and hit_by(run, found) is None
            for run in runs
        ),
        "unjust_charges": len(unjustly_charged(found)),
        "ledger_difference": sum(abs(int(one["difference"])) for one in found.ledger.values()),
        "misheld": sum(
            abs(int(one["recorded_unacked"]) - int(one["unacked"])) for one in found.ledger.values()
        ),
        "not_drained": sum(
            int(one["waiting"] + one["delayed"] + one["unacked"]) for one in found.ledger.values()
        ),
    }


def repeats(found: Findings, runs: Sequence[Run]) -> tuple[Counter[str], list[Run]]:
    """Return how many further runs each event has caused, and those that none explains."""
    by_number: dict[int, list[Run]] = defaultdict(list)
    caused: Counter[str] = Counter()
    unexplained = []
    for run in runs:
        earlier = by_number[run.number]
        if any(one.attempt == run.attempt for one in earlier):
            # A hit between sending a retry and acknowledging its first attempt sends it twice.
            causes: list[str] = [c for one in earlier if (c := hit_by(one, found))]
            causes += ["search" for one in earlier if one.is_searched]
            if causes:
                caused[causes[-1]] += 1
            else:
                unexplained.append(run)
        earlier.append(run)
    return caused, unexplained


def unjustly_charged(found: Findings) -> list[str]:
    """Return the ids that were charged though nothing had ended the process that ran them.

    A deploy is no reason. A lease that ran out while the link was silent is one.
    """
    number_of = {one.id: one.number for one in found.sent}
    reasons = (Event.POOL, Event.WORKER, Event.SILENT)
    number_of_charge = {id_: number_of.get(id_) for id_, _ in found.charges}
    charged = set(number_of_charge.values())
    runs = [run for run in runs_of(found.notes) if run.number in charged] if charged else []
    hit = {run.number for run in runs if hit_by(run, found) in reasons}
    return [id_ for id_, number in number_of_charge.items() if number not in hit]


def hit_by(run: Run, found: Findings) -> Event | None:
    """Return the event that may have kept a run's end from being acknowledged."""
    last = math.inf if run.ended is None else run.ended + SETTLING_SECONDS
    if run.answered is not None:
        last = run.answered + MARGIN_SECONDS
    for end in found.ends:
        if end.cause and {run.pid, run.parent} & end.processes and run.started <= end.at <= last:
            return end.cause
    for event, at, healed_at in found.happened:
        if event is Event.SILENT and run.started <= healed_at and at <= last:
            return event
    return None
