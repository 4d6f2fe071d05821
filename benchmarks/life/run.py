"""One run: servers, fleet, traffic and trouble at once, then the account of every message."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from benchmarks.apps.settings import Settings
from benchmarks.life import account, report
from benchmarks.life.fleet import Fleet, resident_bytes
from benchmarks.life.plan import BEGIN_FILE, CONCURRENCY, MAX_SIZE, Plan
from benchmarks.life.records import read_notes
from benchmarks.life.trouble import BUSY_AFTER_MS, Trouble
from benchmarks.life.watch import Broker, Results, Sample
from benchmarks.measure import MEMORY, wait_for
from benchmarks.server import HOST, Server, free_port
from benchmarks.workers import READY_SECONDS, ROOT, BenchmarkError, environment, logs
from tasks.child import Child

TICK_SECONDS = 0.02
SAMPLE_SECONDS = 1.0

#: After the last message: leases run out, delays of up to a minute end.
DRAIN_SECONDS = 75.0

#: How many of the messages that never came are named.
NAMED = 20


def live(plan: Plan, *, keep_logs: Path | None = None) -> dict[str, Any]:
    """Do one run and return its figures, ready for JSON.

    Arguments:
        keep_logs: a folder that the logs of all processes are copied to.

    Raises:
        BenchmarkError: the run could not be done; what it found is in the figures.
    """
    plan.check()
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="life-", dir=MEMORY))
        )
        scene = stack.enter_context(_scene(plan, directory))
        try:
            return scene.play()
        finally:
            if keep_logs:
                keep_logs.mkdir(parents=True, exist_ok=True)
                for path in directory.glob("*.log"):
                    (keep_logs / path.name).write_bytes(path.read_bytes())


@contextmanager
def _scene(plan: Plan, directory: Path) -> Iterator[_Scene]:
    with (
        Server() as broker,
        Server() as results,
        redis.Redis.from_url(broker.broker_url) as broker_client,
        redis.Redis.from_url(results.broker_url) as results_client,
    ):
        broker_client.config_set("busy-reply-threshold", BUSY_AFTER_MS)
        scene = _Scene(plan, directory, broker, results, broker_client, results_client)
        try:
            yield scene
        finally:
            scene.close()


class _Scene:
    """Everything that runs."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        broker: Server,
        results: Server,
        broker_client: redis.Redis,
        results_client: redis.Redis,
    ) -> None:
        self.plan = plan
        self.directory = directory
        self.broker = Broker(broker_client)
        self.results = Results(results_client, directory)
        self._servers = {"broker": broker_client, "results": results_client}
        self._samples: list[Sample] = []
        self._problems: list[str] = []
        self._next_sample = 0.0
        self._processes: dict[str, Child] = {}
        port = free_port()
        self._own = _settings(plan, directory, broker.broker_url, "")
        behind = f"redis://{HOST}:{port}/0"
        self.fleet = Fleet(plan.pool, _settings(plan, directory, behind, results.broker_url))
        self._ports = (port, broker.port)

    def _start(self, module: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", f"benchmarks.life.{module}", *arguments]
        child = Child(
            command, log=self.directory / f"{module}.log", cwd=ROOT, env=environment(self._own)
        )
        self._processes[module] = child.start()
        return child

    def close(self) -> None:
        """End every process."""
        self.fleet.stop()
        for process in self._processes.values():
            process.kill()

    # -- the run

    def play(self) -> dict[str, Any]:
        """Run the plan, and return the figures."""
        self._link()
        self.fleet.start()
        if not wait_for(self._fleet_is_ready, seconds=READY_SECONDS):
            raise BenchmarkError(f"the workers are not ready\n{logs(self.directory)}")
        began = self._begin_traffic()
        trouble = Trouble(
            fleet=self.fleet,
            broker=self._servers["broker"],
            results=self._servers["results"],
            proxy=self._processes["proxy"],
            settings=self._own,
            began=began,
            happenings=list(self.plan.happenings()),
        )
        deadline = began + self.plan.load_ends + DRAIN_SECONDS
        self._endure(trouble, deadline)
        drained_at = self._drain(deadline)
        trouble.undo_all()
        return self._account(trouble, began, drained_at)

    def _link(self) -> None:
        """Start the proxy that workers reach the broker through."""
        port = self._ports[0]
        self._start("proxy", *map(str, self._ports), str(self.directory))

        def answers() -> bool:
            with suppress(redis.RedisError), redis.Redis(host=HOST, port=port) as client:
                return bool(client.ping())
            return False

        if not wait_for(answers, seconds=READY_SECONDS):
            raise BenchmarkError(f"the proxy does not answer\n{logs(self.directory)}")

    def _fleet_is_ready(self) -> bool:
        self.fleet.tick()
        return self.fleet.is_ready

    def _begin_traffic(self) -> float:
        self._start("traffic", self.plan.to_json())
        path = self.directory / BEGIN_FILE
        if not wait_for(path.exists, seconds=READY_SECONDS):
            raise BenchmarkError(f"the producer did not begin\n{logs(self.directory)}")
        return float(path.read_text())

    def _endure(self, trouble: Trouble, deadline: float) -> None:
        """Let everything happen that is planned."""
        producer = self._processes["traffic"]
        while producer.running or not trouble.is_over:
            trouble.tick()
            self._tick()
            if time.monotonic() > deadline:
                self._problems.append("what was planned did not happen in time")
                return
        if producer.code:
            raise BenchmarkError(f"the producer failed\n{logs(self.directory)}")

    def _tick(self) -> None:
        self.fleet.tick()
        self.broker.note_charges()
        if time.monotonic() >= self._next_sample:
            self._next_sample = time.monotonic() + SAMPLE_SECONDS
            self._sample()
        time.sleep(TICK_SECONDS)

    def _sample(self) -> None:
        self.results.look()
        places = self.broker.places()
        if places is None:
            return
        memory = self.fleet.memory()
        for name, process in self._processes.items():
            memory[name] = (process.pid, resident_bytes(process.pid))
        with suppress(redis.RedisError):  # a slow script may just have begun
            for name, client in self._servers.items():
                info: Any = client.info("memory")
                memory[name] = (0, int(info["used_memory"]))
        self._samples.append(Sample(at=time.monotonic(), places=places, memory=memory))

    def _drain(self, deadline: float) -> float | None:
        """Wait until the broker holds nothing; return when that was."""
        while time.monotonic() < deadline:
            self._tick()
            places = self.broker.places()
            if places is not None and not sum(places.values()):
                return time.monotonic()
        return None

    def _account(self, trouble: Trouble, began: float, drained_at: float | None) -> dict[str, Any]:
        self._sample()
        self.results.look(at_all=True)
        found = account.Findings(
            plan=self.plan,
            began=began,
            drained_at=drained_at,
            messages=self.plan.messages(),
            sent=self.results.sent,
            notes=read_notes(self.directory),
            ends=self.fleet.ends,
            happened=trouble.happened,
            states=self.results.states,
            dead=self.broker.dead_numbers(),
            charges=[(id_, at) for (id_, _), at in self.broker.charges.items()],
            ledger=self.broker.ledger(),
            samples=self._samples,
            evidence=trouble.evidence(),
            refused=self.results.refused,
        )
        figures = report.report(found)
        figures["ledger"] = found.ledger
        figures["problems"] += [*self._problems, *self._details(found)]
        return figures

    def _details(self, found: account.Findings) -> list[str]:
        """Return where the messages are that never came, and why healthy ones died."""
        lines = [end.what for end in found.ends if end.cause is None]
        unexplained = account.repeats(found, account.runs_of(found.notes))[1]
        for run in unexplained[:NAMED]:
            steps = ", ".join(
                f"{n.step.name.lower()} {n.at - found.began:.1f} s in {n.parent}/{n.pid}"
                for n in found.notes
                if n.number == run.number
            )
            lines.append(f"message {run.number} ran again, attempt {run.attempt}: {steps}")
        missing = [one for one in found.sent if one.number not in found.states][:NAMED]
        ids = [one.id for one in missing]
        places, stored = self.broker.whereabouts(ids), self.results.stored(ids)
        for one in missing:
            message = found.messages[one.number]
            runs = [n for n in found.notes if n.number == one.number]
            steps = ", ".join(f"{n.step.name.lower()} {n.at - found.began:.1f} s" for n in runs)
            lines.append(
                f"message {one.number} ({message.queue}, {one.id}) of {message.at:.1f} s has no "
                f"result: stored {stored[one.id]}; {places[one.id]}; {steps or 'never ran'}"
            )
        healthy = [n for n in found.dead if n >= 0 and found.messages[n].behaviour.name != "DOOMED"]
        reasons = self.broker.dead_reasons() if healthy else {}
        unjust = set(account.unjustly_charged(found))
        lines += [
            f"message {id_} was charged at {at - found.began:.1f} s: {charge}"
            for (id_, charge), at in self.broker.charges.items()
            if id_ in unjust
        ]
        lines += [f"message {n} is a dead letter: {reasons[n]}" for n in healthy[:NAMED]]
        return lines


def _settings(plan: Plan, directory: Path, broker: str, backend: str) -> Settings:
    return Settings(
        broker=broker,
        backend=backend,
        directory=directory,
        store=True,
        prefetch=(CONCURRENCY[plan.pool] + 1) * MAX_SIZE,
        batch_size=MAX_SIZE,
    )
