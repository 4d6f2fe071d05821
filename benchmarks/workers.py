"""The processes of one side in one round: start workers, publish, end them for certain.

Both sides get the same command line, with the quiet options below.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.apps.settings import WARM_QUEUE, Settings
from tasks.child import Child

Side = Literal[
    "ours",
    "stock",
    "sampled",
    "crashing",
    "living",
    "trickled",
    "queued",
    "gated",
    "staged",
    "ingested",
]
Pool = Literal["prefork", "threads", "gevent", "solo"]

ROOT = Path(__file__).resolve().parent.parent
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.002


class BenchmarkError(Exception):
    """A round could not be measured: a worker died, or did not finish in time.

    The message holds the end of the workers' logs.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Which workers a case runs: ``workers`` processes with the same pool and concurrency."""

    pool: Pool = "prefork"
    concurrency: int = 2
    workers: int = 1
    events: bool = False

    def options(self) -> list[str]:
        """Return the command-line options of each worker."""
        size = [] if self.pool == "solo" else ["-c", str(self.concurrency)]
        return ["-P", self.pool, *size, *(["-E"] if self.events else [])]

    @property
    def processes(self) -> int:
        """Return how many processes run tasks."""
        return self.workers * (1 if self.pool == "solo" else self.concurrency)


@contextmanager
def running(side: Side, crew: Crew, settings: Settings) -> Iterator[None]:
    """Run a crew that consumes only the warm-up queue; on the way out every process is ended."""
    started: list[Child] = []
    try:
        names = [f"{side}{number}@bench" for number in range(crew.workers)]
        started.extend(start(side, name, crew, settings) for name in names)
        wait_ready(started, settings.directory)
        yield
        check_alive(started, settings.directory)
    finally:
        stop(started)


def start(
    side: Side, name: str, crew: Crew, settings: Settings, *, queue: str = WARM_QUEUE
) -> Child:
    """Start one worker."""
    command = [sys.executable, "-m", "celery", "-A", f"benchmarks.apps.{side}:app", "worker"]
    command += ["-n", name, "-Q", queue, *crew.options(), *QUIET]
    log = settings.directory / f"{name}.log"
    return Child(command, log=log, cwd=ROOT, env=environment(settings)).start()


def environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the round's settings, without Celery's own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CELERY_")}
    return {**kept, **settings.to_environment(), "PYTHONPATH": str(ROOT)}


def wait_ready(started: list[Child], directory: Path) -> None:
    """Return when every worker has left its ready file."""
    deadline = time.monotonic() + READY_SECONDS
    while len(list(directory.glob("ready.*"))) < len(started):
        check_alive(started, directory)
        if time.monotonic() > deadline:
            raise BenchmarkError(f"workers not ready in {READY_SECONDS:g} s\n{logs(directory)}")
        time.sleep(0.02)


def check_alive(started: list[Child], directory: Path) -> None:
    """Raise when a worker has ended by itself."""
    for process in started:
        if not process.running:
            raise BenchmarkError(f"a worker ended with {process.code}\n{logs(directory)}")


def stop(started: list[Child]) -> None:
    """Ask all workers to end, then end what is left of each process group."""
    for process in started:
        process.send()
    deadline = time.monotonic() + STOP_SECONDS
    for process in started:
        process.stop(deadline - time.monotonic())


def children_of(pid: int) -> list[int]:
    """Return the processes of a worker's pool."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def logs(directory: Path) -> str:
    """Return the last lines of every worker's log."""
    tails = []
    for path in sorted(directory.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()
        tails.append("\n".join([f"--- {path.name}", *lines[-30:]]))
    return "\n".join(tails)


def produce(side: Side, settings: Settings, *arguments: str, seconds: float = 300.0) -> float:
    """Run ``benchmarks.apps.produce`` and return the seconds that it measured."""
    answer = run_module(
        "benchmarks.apps.produce", settings, side, *arguments, within_seconds=seconds
    )
    return float(answer["seconds"])


def run_module(
    module: str, settings: Settings, *arguments: str, within_seconds: float = 300.0
) -> dict[str, Any]:
    """Run a module in a process of its own and return the JSON of its last line."""
    command = [sys.executable, "-m", module]
    return run_json(command, environment(settings), *arguments, within_seconds=within_seconds)


def run_json(
    command: Sequence[str],
    variables: Mapping[str, str],
    *arguments: str,
    within_seconds: float = 300.0,
) -> dict[str, Any]:
    """Run a command in this environment and return the JSON of its last line."""
    answer: dict[str, Any] = json.loads(
        _run([*command, *arguments], variables, within_seconds=within_seconds).splitlines()[-1]
    )
    return answer


def environment_with(folder: Path, packages: Sequence[str]) -> Path:
    """Make an environment with these packages and return its interpreter.

    Raises:
        BenchmarkError: they could not be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", *packages]
    _run(pip, os.environ, within_seconds=300)
    return python


def _run(command: Sequence[str], variables: Mapping[str, str], *, within_seconds: float) -> str:
    words = " ".join(command[1:])
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=within_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{words} took more than {within_seconds:g} s") from error
    if done.returncode:
        raise BenchmarkError(f"{words} failed\n{done.stderr[-4000:]}")
    return done.stdout
