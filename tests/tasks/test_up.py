from __future__ import annotations

import io
import json
import queue
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import psutil  # type: ignore[import-untyped]
import pytest
from honcho.printer import Message, Printer

from tasks.up import RESTARTS_PER_MINUTE, Events, Manager
from tests.support.wait import eventually
from tests.tasks.conftest import environment_in, free_port
from tests.tasks.processes import Process


class Flower:
    """Flower's API, as a script would ask it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.base}{path}", timeout=30) as answer:
            return json.load(answer)

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.base}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def workers(self) -> set[str]:
        """The workers that answer now, without their host."""
        try:
            return {name.split("@")[0] for name in self.get("/api/workers?refresh=1")}
        except (URLError, ConnectionError):
            return set()

    def tasks(self, **filters: str) -> dict[str, Any]:
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        found: dict[str, Any] = self.get(f"/api/tasks?limit=1000&{query}")
        return found

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.base}{path}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def running(folder: Path) -> Iterator[tuple[Process, Flower]]:
    """Run `make up` until it is ready, with its data in a folder."""
    flower = Flower(free_port())
    environment = environment_in(folder)
    environment["FLOWER_PORT"] = str(flower.port)
    environment["FLOWER_UNAUTHENTICATED_API"] = "true"
    with Process(["tasks.up"], environment=environment, log=folder / "log") as process:
        ready = lambda: flower.workers() == {"worker.1", "worker.2"}  # noqa: E731
        eventually(ready, 90, message=lambda: process.output[-5_000:])
        yield process, flower


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Process]:
    """`make up`, ready, for a test that ends it."""
    with running(tmp_path) as (process, _):
        yield process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Flower]]:
    """`make up`, ready, and its Flower, for the tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("up")) as both:
        yield both


def test_ctrl_c_ends_everything_and_leaves_nothing_behind(up: Process) -> None:
    family = up.family()
    assert len(family) >= 9  # broker, its server, two workers of three processes, Flower
    assert up.stop(signal.SIGINT) == 0
    eventually(lambda: not up.family(), 30, message=lambda: str(up.family()))


def test_a_process_that_ends_by_itself_ends_the_others_and_is_an_error(up: Process) -> None:
    family = up.family()
    flower = next(p for p in family if "flower" in p.cmdline())
    flower.kill()
    assert up.wait() == 1
    eventually(lambda: not up.family(), 30, message=lambda: str(up.family()))


def test_a_killed_worker_is_started_again_and_leaves_no_pool_behind(
    shared: tuple[Process, Flower],
) -> None:
    up, flower = shared
    assert "Inspect method" not in up.output  # Flower came after the workers
    pid = re.search(r"worker\.1 started \(pid=(\d+)\)", up.output)
    assert pid is not None
    killed = psutil.Process(int(pid[1]))
    pool = killed.children()
    assert len(pool) == 2
    killed.kill()
    eventually(lambda: not any(p.is_running() for p in pool), 30)
    started = "worker.1 ended (rc=-9), starts again"
    eventually(lambda: started in up.output, 30, message=lambda: up.output[-5_000:])
    ready = lambda: up.output.count(" worker.1@") == 2  # noqa: E731
    eventually(ready, 60, message=lambda: up.output[-5_000:])
    eventually(lambda: flower.workers() == {"worker.1", "worker.2"}, 60)
    assert up.running


@pytest.fixture
def broken(environment: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    """`make up` with a worker that cannot run, and leaves a process that holds its output."""
    procfile = tmp_path / "Procfile"
    procfile.write_text("broker: exec sleep 600\nworker: sleep 601 & exit 3\n")
    arguments = ["tasks.up", "--workers", "1", "--procfile", str(procfile)]
    with Process(arguments, environment=environment, log=tmp_path / "log") as process:
        yield process


def test_a_worker_that_cannot_run_is_given_up_after_some_starts(broken: Process) -> None:
    assert broken.wait() == 1
    assert broken.output.count("worker.1 started") == 1 + RESTARTS_PER_MINUTE
    assert "giving up" in broken.output


def test_ctrl_c_is_heard_while_a_worker_waits_for_its_next_start(broken: Process) -> None:
    eventually(lambda: "starts again" in broken.output, 30)
    assert broken.stop(signal.SIGINT) == 0


def test_what_has_not_said_that_it_started_is_asked_to_end_when_it_does() -> None:
    asked: list[int] = []
    manager = Manager(Printer(io.StringIO()))
    manager._procmgr = SimpleNamespace(terminate=asked.append)
    for name in ("broker", "worker.1"):
        manager.add_process(name, "exit 3")
    manager._processes["worker.1"]["pid"] = 2
    manager.terminate()
    assert asked == [2]
    written: queue.Queue[Message] = queue.Queue()
    written.put(Message(type="start", data={"pid": 1}, time=None, name="broker", colour=None))
    assert Events(written, manager=manager).get(timeout=0).type == "start"
    assert asked == [2, 1]


def test_flower_shows_workers_every_item_and_queue_lengths(
    shared: tuple[Process, Flower],
) -> None:
    _, flower = shared
    flight = {
        "carrier": "UA",
        "flight": "1545",
        "origin": "EWR",
        "dest": "IAH",
        "time_hour": "2013-01-01T10:00:00Z",
        "sched_dep_time": "515",
        "distance": "1400",
    }
    departed = {**flight, "dep_time": "517"}
    for row in [departed, departed, flight]:
        flower.post("/api/task/send-task/tasks.flights.load", {"args": [row]})

    def ended() -> bool:
        states = [task["state"] for task in flower.tasks(taskname="tasks.flights.load").values()]
        return sorted(states) == ["FAILURE", "SUCCESS", "SUCCESS"]

    eventually(ended, 30, message=lambda: str(flower.tasks()))
    items = flower.tasks(taskname="tasks.flights.load").values()
    failed = next(item for item in items if item["state"] == "FAILURE")
    assert "dep_time" in failed["exception"]
    assert "InvalidItem" in failed["traceback"]
    assert "'flight': '1545'" in failed["args"]
    assert {item["worker"].split("@")[0] for item in items} <= {"worker.1", "worker.2"}

    assert flower.workers() == {"worker.1", "worker.2"}
    lengths = {q["name"]: q["messages"] for q in flower.get("/api/queues/length")["active_queues"]}
    dead = {"realtime.dead": 0, "default.dead": 0, "bulk.dead": 1, "webhooks.dead": 0}
    assert lengths == {"realtime": 0, "default": 0, "bulk": 0, "webhooks": 0, **dead}
    assert "bulk.dead" in flower.page("/broker")
