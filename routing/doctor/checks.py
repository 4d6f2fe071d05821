"""What is wrong with a live platform, and what to do about it.

Pure: `examine` takes a `Snapshot`, which `routing.doctor.survey` reads from a broker and its
workers, and returns a `Finding` for everything that it looked at. ``celery doctor`` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from routing.doctor.finding import Finding, Judgement, Level, count_of
from routing.doctor.queue_checks import bounds, gates, queues, settings
from routing.doctor.snapshot import Snapshot
from routing.redis.permissions import grant

#: Redis 6.2 has what the scripts call (ZMSCORE, LPOP and RPOP with a count).
OLDEST_REDIS = (6, 2)

#: Seconds. Leases, delays and `expires` go by the server's clock, events and logs by the workers'.
CLOCK_WARN_SECONDS, CLOCK_ERROR_SECONDS = 1.0, 60.0

#: Share of the memory in use; what is left is for results and for the copy that a snapshot takes.
MEMORY_WARN, MEMORY_ERROR = 0.75, 0.90

#: Why a worker that holds messages may be silent and well.
SOLO = "a solo worker answers only between its tasks"


def examine(snapshot: Snapshot) -> list[Finding]:
    """Return what was found, check by check."""
    return [
        Finding(check=name, level=level, what=what, advice=advice)
        for name, check in CHECKS.items()
        for level, what, advice in _judge(name, check, snapshot)
    ]


#: Checks of what the server says about itself.
_OF_INFO = frozenset(("server", "eviction", "persistence", "memory"))


def _judge(
    name: str, check: Callable[[Snapshot], Iterator[Judgement]], snapshot: Snapshot
) -> Iterator[Judgement]:
    if name in _OF_INFO and not snapshot.server.is_told:
        yield "warn", "not looked at: this user may not run INFO", "allow it: +info"
        return
    yield from check(snapshot)


def _permissions(snapshot: Snapshot) -> Iterator[Judgement]:
    if names := list(snapshot.server.denied):
        what = f"this user may not do what the engine needs: {', '.join(names)}"
        yield "error", what, f"allow it: ACL SETUSER <user> {grant(names)}"
    else:
        yield "ok", "the engine may run what it needs", ""


def _version(snapshot: Snapshot) -> Iterator[Judgement]:
    server = snapshot.server
    name = f"{server.product} {server.version}"
    numbers = tuple(int(n) for n in server.version.split(".")[:2] if n.isdigit())
    if server.is_cluster:
        yield "error", f"{name} runs in cluster mode", "use one server, with replicas and Sentinel"
    if server.role != "master":
        yield (
            "error",
            f"{name} is a {server.role} and takes no writes",
            "name the master, or Sentinel",
        )
    if server.product == "redis" and numbers < OLDEST_REDIS:
        yield "error", f"{name} is too old", "the engine needs Redis 6.2, or Valkey"
    else:
        yield "ok", name, ""


def _eviction(snapshot: Snapshot) -> Iterator[Judgement]:
    server = snapshot.server
    advice = "set maxmemory-policy noeviction"
    match server.eviction:
        case "noeviction":
            yield "ok", "nothing is evicted when the memory is full", ""
        case policy if policy.startswith("volatile"):
            yield "warn", f"maxmemory-policy {policy} may evict results and bells", advice
        case policy if server.max_bytes:
            yield "error", f"maxmemory-policy {policy} may evict whole queues", advice
        case policy:
            what = f"maxmemory-policy {policy} would evict whole queues if there were a maxmemory"
            yield "warn", what, advice


def _persistence(snapshot: Snapshot) -> Iterator[Judgement]:
    server = snapshot.server
    if server.write_failed or server.save_failed:
        file = "append-only file" if server.write_failed else "snapshot"
        what = f"the server could not write its {file}, and may refuse to take messages"
        yield "error", what, "look at the server's log and at its disk"
    if server.appends and server.fsync == "no":
        what = "the append-only file is written when the system likes"
        yield "warn", what, "set appendfsync everysec, or always to lose nothing at all"
    elif server.appends:
        yield "ok", f"append-only file, fsync {server.fsync or 'unknown'}", ""
    elif server.saves == "":
        what = "neither an append-only file nor snapshots: a restart loses every message"
        yield "error", what, "set appendonly yes"
    else:
        what = "snapshots only: a crash loses what came since the last one"
        yield "warn", what, "set appendonly yes"


def _memory(snapshot: Snapshot) -> Iterator[Judgement]:
    server = snapshot.server
    limit = server.max_bytes or server.machine_bytes
    of = "maxmemory" if server.max_bytes else "the machine's memory"
    used = server.used_bytes / limit if limit else 0.0
    what = f"{_size(server.used_bytes)} in use" + (f", {used:.0%} of {of}" if limit else "")
    advice = (
        "drain or bound the longest queues (celery -A <app> queues), trim dead letters, or add "
        "memory"
    )
    if used >= MEMORY_ERROR:
        yield "error", what, advice
    elif used >= MEMORY_WARN:
        yield "warn", what, advice
    else:
        yield "ok", what, ""


def _clocks(snapshot: Snapshot) -> Iterator[Judgement]:
    clocks = {worker.name: worker.ahead_seconds for worker in snapshot.workers}
    clocks["this machine"] = snapshot.here_ahead_seconds
    known = {name: ahead for name, ahead in clocks.items() if ahead is not None}
    for name, ahead in known.items():
        if abs(ahead) >= CLOCK_WARN_SECONDS:
            level: Level = "error" if abs(ahead) >= CLOCK_ERROR_SECONDS else "warn"
            way = "ahead of" if ahead > 0 else "behind"
            what = f"the clock of {name} is {abs(ahead):.1f} s {way} the server's"
            yield level, what, "run a time service there: events, logs and times of day go by it"
    if all(abs(ahead) < CLOCK_WARN_SECONDS for ahead in known.values()):
        most = max(map(abs, known.values()), default=0.0)
        yield "ok", f"clocks within {most * 1000:.0f} ms of the server's", ""


def _workers(snapshot: Snapshot) -> Iterator[Judgement]:
    ours = [worker for worker in snapshot.workers if not worker.is_stock]
    silent = snapshot.silent
    for name, held in sorted(silent.items()):
        what = f"{name} holds {count_of(held, 'message')} and does not answer"
        yield "warn", what, f"{SOLO}; else look at its log"
    for worker in snapshot.workers:
        shared = sorted(set(worker.queues) & set(snapshot.table.queues))
        if worker.is_stock and shared:
            what = f"{worker.name} is a stock worker and consumes {', '.join(shared)}"
            yield "warn", what, "let it call routing.install: it keeps no bounds and no ledger"
    if ours:
        yield "ok", f"{count_of(len(ours), 'worker')} answered", ""
    else:
        advice = "start one: celery -A <app> worker"
        what = "no worker of the engine answers"
        yield "error", what, f"{SOLO}; else {advice}" if silent else advice


def _unacked(snapshot: Snapshot) -> Iterator[Judgement]:
    unacked = snapshot.unacked
    lease = snapshot.table.lease_seconds
    level: Level = "warn" if snapshot.has_engine else "error"
    if unacked.expired:
        what = f"{count_of(unacked.expired, 'message')} held under leases that ran out"
        advice = (
            f"a worker takes them over within a lease ({lease:g} s); if this stays, look at the "
            "workers' logs"
            if snapshot.has_engine
            else f"start a worker: it takes them over within a lease ({lease:g} s)"
        )
        yield level, what, advice
    # Workers that have just begun are not known by name.
    silent = sum(snapshot.silent.values()) if snapshot.has_engine else unacked.leased
    if silent:
        what = f"{count_of(silent, 'message')} in the hands of workers that do not answer"
        advice = (
            "if those are dead, the others take them over when the leases run out"
            if snapshot.has_engine
            else "if those are dead, start one: it takes them over when the leases run out"
        )
        yield level, what, advice
    if unacked.unleased:
        what = f"{count_of(unacked.unleased, 'message')} unacknowledged without a lease"
        yield "error", what, "somebody deleted keys: stock workers restore them within the hour"
    if unacked.stock_overdue:
        what = f"{count_of(unacked.stock_overdue, 'message')} held by stock workers for too long"
        yield "error", what, "only stock workers restore them: start one, or see to those that run"
    held = unacked.leased + unacked.stock - unacked.stock_overdue
    if not (silent or unacked.expired or unacked.unleased or unacked.stock_overdue):
        yield "ok", f"{count_of(held, 'message')} in the hands of workers", ""


def _ledger(snapshot: Snapshot) -> Iterator[Judgement]:
    balanced = True
    for queue in snapshot.ledger.queues:
        if queue.difference or queue.misheld or queue.misparked:
            balanced = False
            # What was dropped by policy is no fault; `celery queues` shows it.
            remarks = [text for text in queue.remarks() if "rebase" in text]
            yield (
                "warn",
                f"queue {queue.queue!r}: {'; '.join(remarks)}",
                "see: celery -A <app> queues --verify",
            )
        if queue["results_lost"]:
            what = f"queue {queue.queue!r}: {queue['results_lost']} dropped tasks stay PENDING"
            yield "warn", what, "workers were away for too long while it overflowed"
    if balanced:
        yield "ok", "every accepted message is accounted for", ""


def _dead_letters(snapshot: Snapshot) -> Iterator[Judgement]:
    found = False
    for queue in snapshot.ledger.queues:
        limit = snapshot.table.queue(queue.queue).max_dead
        if not queue.dead_letters:
            continue
        found = True
        what = f"{count_of(queue.dead_letters, 'dead letter')} of queue {queue.queue!r}"
        level: Level = "ok"
        if queue.dead_letters >= limit:
            what += ", as many as are kept: the oldest make room"
            level = "warn"
        yield level, what, f"look at them: celery -A <app> deadletter groups --queue {queue.queue}"
    if not found:
        yield "ok", "no dead letters", ""


def _leases(snapshot: Snapshot) -> Iterator[Judgement]:
    lease = snapshot.table.lease_seconds
    # Stock workers go by the last renewal, which is up to a third of a lease ago.
    if snapshot.visibility_seconds < 2 * lease:
        what = (
            f"visibility_timeout is {snapshot.visibility_seconds:g} s and the lease {lease:g} s: "
            "stock workers would take what ours still hold"
        )
        yield "error", what, "raise visibility_timeout to at least twice lease_seconds"
    others = {w.name: w.lease_seconds for w in snapshot.workers if not w.is_stock}
    for name, seconds in others.items():
        if seconds != lease:
            what = f"{name} works with leases of {seconds:g} s, the table says {lease:g} s"
            yield "warn", what, "restart it, so that it reads the table"
    if snapshot.visibility_seconds >= 2 * lease and all(s == lease for s in others.values()):
        yield "ok", f"the messages of a worker that dies are taken over after {lease:g} s", ""


def _versions(snapshot: Snapshot) -> Iterator[Judgement]:
    ours = [worker for worker in snapshot.workers if not worker.is_stock]
    mixed = False
    for package in sorted({package for worker in ours for package in worker.versions}):
        by_version = Counter(worker.versions.get(package, "unknown") for worker in ours)
        if len(by_version) > 1:
            mixed = True
            parts = ", ".join(f"{version} ({n})" for version, n in sorted(by_version.items()))
            yield (
                "warn",
                f"workers run different versions of {package}: {parts}",
                "bring them to one",
            )
    for worker in ours:
        if worker.table != snapshot.digest:
            mixed = True
            what = f"{worker.name} has another queue table than this app"
            yield "warn", what, "restart it with the table that is to hold"
    if ours and not mixed:
        known = ", ".join(f"{name} {version}" for name, version in ours[0].versions.items())
        yield "ok", f"all workers alike: {known}", ""


CHECKS = {
    "server": _version,
    "permissions": _permissions,
    "eviction": _eviction,
    "persistence": _persistence,
    "memory": _memory,
    "clocks": _clocks,
    "workers": _workers,
    "queues": queues,
    "bounds": bounds,
    "limits": gates,
    "settings": settings,
    "unacked": _unacked,
    "ledger": _ledger,
    "dead letters": _dead_letters,
    "leases": _leases,
    "versions": _versions,
}


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
