"""The report of a run: figures from what it has left behind, and their text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.life.account import FINAL, Findings, Run, counts_of, repeats, runs_of
from benchmarks.life.plan import BATCHED, LOAD, QUEUES, URGENT, Event, Plan
from benchmarks.life.records import Step

#: Memory may grow by so much in the last half of a run that is long enough to tell.
FLAT = 1.10
#: A minute's least memory is looked for while at most so many messages had not ended.
EQUAL_BACKLOG = 200
LEAST_MINUTES = 8
MINUTE = 60.0

QUANTILES = (50, 99)


def report(found: Findings) -> dict[str, Any]:
    """Return all figures, ready for JSON; ``problems`` says what should not be."""
    runs = runs_of(found.notes)
    events = events_of(found, runs)
    counts = counts_of(found, runs)
    memory = memory_of(found)
    return {
        "pool": found.plan.pool,
        "seconds": found.plan.seconds,
        "capacity": {
            "slots": found.plan.slots,
            "mean_run_ms": round(found.plan.mean_run_seconds * 1000, 2),
            "messages_s": round(found.plan.capacity, 1),
            "trickle_share": LOAD,
        },
        "messages": len(found.sent),
        "counts": counts,
        "caused_runs": dict(repeats(found, runs)[0]),
        "events": events,
        "urgent_start_ms": urgent_of(found, runs),
        "batches": batches_of(found, runs),
        "throughput": throughput_of(found, runs),
        "producer": {"sent_again": found.refused, "late_ms": _late_ms(found)},
        "memory": memory,
        "timeline": timeline_of(found, runs),
        "problems": problems(found.plan, counts, events, memory),
    }


def problems(
    plan: Plan,
    counts: Mapping[str, int],
    events: Mapping[str, Mapping[str, Any]],
    memory: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Return a line for each count that is not 0, event that did not happen, and growth."""
    found = [f"{name} must be 0, got {count}" for name, count in counts.items() if count]
    for event in Event:
        evidence = events.get(event, {})
        if plan.has(event) and not any(evidence.values()):
            found.append(f"the event {event.value!r} did not happen: {dict(evidence)}")
    for process, figures in memory.items():
        if figures.get("growth") and figures["growth"] > FLAT:
            found.append(f"memory of {process} grew {figures['growth']} times in the last half")
    return found


def events_of(found: Findings, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the evidence of each event of the plan."""
    numbers = {one.number for one in found.sent}
    noted: dict[Event, dict[str, Any]] = {
        Event.SINK: {"refused_runs": sum(run.step is Step.REFUSED for run in runs)},
        Event.BURST: {"messages": sum(m.is_burst and m.number in numbers for m in found.messages)},
    }
    return {
        event.value: dict(noted.get(event) or found.evidence.get(event, {}))
        for event in Event
        if found.plan.has(event)
    }


# -- how it went


def urgent_of(found: Findings, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Return the start latency of urgent calls: idle, under load, and there beside no event."""
    waits = _waits(found, runs, URGENT)
    load_began = found.began + found.plan.idle_seconds

    def is_disturbed(at: float) -> bool:
        return any(begin <= at <= end for _, begin, end in found.happened)

    return {
        "idle": quantiles(wait for at, wait in waits if at < load_began),
        "load": quantiles(wait for at, wait in waits if at >= load_began),
        "load_beside_no_event": quantiles(
            wait for at, wait in waits if at >= load_began and not is_disturbed(at)
        ),
    }


def _waits(found: Findings, runs: Sequence[Run], queue: str) -> list[tuple[float, float]]:
    """Return when each message of a queue was sent, and how long it waited for its first run."""
    chosen = {message.number for message in found.messages if message.queue == queue}
    first: dict[int, float] = {}
    for run in runs:
        first.setdefault(run.number, run.started)
    return [
        (one.at, first[one.number] - one.at)
        for one in found.sent
        if one.number in chosen and one.number in first
    ]


def quantiles(seconds: Iterable[float]) -> dict[str, float]:
    """Return count, p50, p99 and maximum, in milliseconds.

    >>> quantiles([0.001, 0.003, 0.002])
    {'count': 3, 'p50': 2.0, 'p99': 3.0, 'max': 3.0}
    """
    ordered = sorted(seconds)
    if not ordered:
        return {"count": 0}
    at = {f"p{p}": ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in QUANTILES}
    figures = {name: round(value * 1000, 1) for name, value in {**at, "max": ordered[-1]}.items()}
    return {"count": len(ordered), **figures}


def batches_of(found: Findings, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the mean batch, and how long items waited."""
    queue_of = {message.number: message.queue for message in found.messages}
    sizes = [run.size for run in runs if queue_of[run.number] == BATCHED]
    calls = sum(1 / size for size in sizes)
    waits = quantiles(wait for _, wait in _waits(found, runs, BATCHED))
    return {
        "calls": round(calls),
        "mean_items": round(len(sizes) / calls, 1) if calls else 0.0,
        "item_wait_ms": waits,
    }


def throughput_of(found: Findings, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what was offered and done a second while the load lasted, and the rest of it."""
    begin, end = found.began + found.plan.idle_seconds, found.began + found.plan.load_ends
    offered = sum(begin <= one.at <= end for one in found.sent)
    done = sum(
        run.step in FINAL and run.ended is not None and begin <= run.ended <= end for run in runs
    )
    seconds = end - begin
    return {
        "offered_s": round(offered / seconds, 1),
        "done_s": round(done / seconds, 1),
        "ratio": round(done / offered, 3) if offered else 0.0,
        "drained_after_seconds": (
            None if found.drained_at is None else round(max(0.0, found.drained_at - end), 1)
        ),
    }


def _late_ms(found: Findings) -> float:
    planned = {message.number: message.at for message in found.messages}
    late = [one.at - found.began - planned[one.number] for one in found.sent]
    return round(1000 * max(late, default=0.0), 1)


def memory_of(found: Findings) -> dict[str, dict[str, Any]]:
    """Return the least memory of each minute, by process, and how it grew in the last half.

    Only samples with a small backlog count, where a minute has one. A process that was replaced in
    the last half is not judged, nor is a run of a few minutes, nor what a server (0) keeps.
    """
    minutes = int(found.plan.seconds // MINUTE)
    series: dict[str, dict[int, dict[bool, list[tuple[int, int]]]]] = {}
    for sample in found.samples:
        minute = int((sample.at - found.began - found.plan.idle_seconds) // MINUTE)
        if 0 <= minute < max(minutes, 1):
            for process, one in sample.memory.items():
                if not one[1]:
                    continue  # it had just ended
                by_minute = series.setdefault(process, {}).setdefault(minute, {})
                by_minute.setdefault(sample.backlog <= EQUAL_BACKLOG, []).append(one)
    return {process: _memory(by_minute, minutes) for process, by_minute in series.items()}


def _memory(
    by_minute: Mapping[int, Mapping[bool, list[tuple[int, int]]]], minutes: int
) -> dict[str, Any]:
    chosen = {n: kinds.get(True) or kinds[False] for n, kinds in sorted(by_minute.items())}
    least = {n: min(size for _, size in samples) for n, samples in chosen.items()}
    figures: dict[str, Any] = {"mb_by_minute": [round(size / 1e6, 1) for size in least.values()]}
    last_half = [n for n in least if n >= minutes / 2]
    pids = {pid for n in last_half for kind in by_minute[n].values() for pid, _ in kind}
    if minutes >= LEAST_MINUTES and len(pids) == 1 and pids != {0}:
        figures["growth"] = round(max(least[n] for n in last_half) / least[last_half[0]], 3)
    return figures


def timeline_of(found: Findings, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each second."""
    last = max([one.at for one in found.samples] or [found.began])
    rows = [_empty_row(second) for second in range(int(last - found.began) + 1)]

    def row(at: float) -> dict[str, Any]:
        return rows[min(max(int(at - found.began), 0), len(rows) - 1)]

    for one in found.sent:
        row(one.at)["sent"] += 1
    for run in runs:
        row(run.started)["started"] += 1
        if run.ended is not None and run.step in FINAL:
            row(run.ended)["ended"] += 1
    for at, wait in _waits(found, runs, URGENT):
        worst = row(at)
        worst["urgent_max_ms"] = max(worst["urgent_max_ms"], round(1000 * wait, 1))
    for sample in found.samples:
        seen = row(sample.at)
        seen.update(sample.places)
        seen["workers_mb"] = round(
            sum(size for name, (_, size) in sample.memory.items() if name.startswith("life")) / 1e6
        )
    for at, what in _marks(found):
        row(at)["events"].append(what)
    return rows


def _marks(found: Findings) -> Iterator[tuple[float, str]]:
    yield from ((begin, event.value) for event, begin, _ in found.happened)
    yield from ((found.began + begin, Event.BURST.value) for begin in found.plan.bursts())
    yield from ((end.at, end.what) for end in found.ends if end.cause is None)


def _empty_row(second: int) -> dict[str, Any]:
    counts = dict.fromkeys(("sent", "started", "ended"), 0)
    # A second without a look at the broker has no such figures.
    seen = dict.fromkeys(
        (*(f"{queue}_waits" for queue in QUEUES), "delayed", "unacked", "workers_mb")
    )
    return {"second": second, **counts, **seen, "urgent_max_ms": 0.0, "events": []}


# -- as people read it


def timeline_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the timeline as a table."""
    names = [name for name in rows[0] if name != "events"]
    lines = ["  ".join(f"{name:>7}" for name in names) + "  events"]
    for row in rows:
        figures = "  ".join(
            f"{'-' if row[name] is None else row[name]:>{max(7, len(name))}}" for name in names
        )
        lines.append(f"{figures}  {', '.join(row['events'])}".rstrip())
    return "\n".join(lines)


def text(figures: Mapping[str, Any]) -> str:
    """Return the sums as text, the problems last."""
    lines = []
    for name, value in figures.items():
        if name in ("timeline", "problems"):
            continue
        if not isinstance(value, Mapping):
            lines.append(f"{name:<18} {value}")
            continue
        for number, (key, one) in enumerate(value.items()):
            said = one
            if isinstance(one, Mapping):
                told = {k: v for k, v in one.items() if v or name != "ledger"}
                said = ", ".join(f"{inner} {figure}" for inner, figure in told.items())
            lines.append(f"{name if not number else '':<18} {key:<30} {said}")
    lines += [f"PROBLEM: {one}" for one in figures["problems"]]
    if not figures["problems"]:
        lines.append("no problems: all counts that must be 0 are, and every event happened")
    return "\n".join(lines)
