"""A pytest plugin for Celery's suite: its servers, the engine in its apps, a line for each outcome.

Loaded with ``-p tests.upstream.plugin`` into processes of their own, which the environment tells:

    CELERIAC_UPSTREAM_ENGINE    "1" when the suite's apps get the engine
    CELERIAC_UPSTREAM_OUTCOMES  the file that gets a JSON line for each phase of each case

Each process that runs cases has a worker, a broker and a result server of its own, as the suite
asks its servers for what nobody else may cause.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery._state import _set_task_join_will_block as set_join_will_block
from celery.contrib.testing import app as testing

from routing import install
from tests.support.servers import Server, valkey_binary

#: The suite sends to the default queue, and asserts that its apps know no other.
TABLE = {"queues": {"celery": {}}, "default_queue": "celery"}

ENGINE = "CELERIAC_UPSTREAM_ENGINE"
OUTCOMES = "CELERIAC_UPSTREAM_OUTCOMES"


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Give the suite its servers before its conftest is imported, which looks for them then."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        early_config.pluginmanager.register(Servers())
    else:
        early_config.pluginmanager.register(Outcomes(Path(os.environ[OUTCOMES])))
    if os.environ[ENGINE] == "1":
        testing.TestApp = with_engine(testing.TestApp)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let cases wait for results: some leave that forbidden, to whichever comes next here."""
    set_join_will_block(False)


def with_engine(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes the same apps, with the engine installed."""

    @functools.wraps(make)
    def make_with_engine(*args: Any, **options: Any) -> Any:
        app = make(*args, **options)
        install(app, TABLE)
        return app

    return make_with_engine


class Servers:
    """A broker and a result server without passwords: parts of the suite can give none."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="u"))
        self._servers = [Server(valkey_binary(), self._directory) for _ in range(2)]
        for server in self._servers:
            server.password = ""
            server.start()
        broker, results = self._servers
        os.environ["TEST_BROKER"] = broker.url
        os.environ["TEST_BACKEND"] = results.url
        os.environ["REDIS_HOST"] = results.host
        os.environ["REDIS_PORT"] = str(results.port)

    def pytest_unconfigure(self) -> None:
        """End them."""
        for server in self._servers:
            server.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Outcomes:
    """Notes how each phase of each case ended, at once: the run may not come to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase."""
        line = {"case": report.nodeid, "outcome": report.outcome}
        if report.failed:
            line["text"] = report.longreprtext[-4000:]
        self._note(line)

    def pytest_sessionfinish(self) -> None:
        """Note that the run came to its end."""
        self._note({"end": True})

    def _note(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
