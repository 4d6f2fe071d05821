"""What is public is named in its package's tour, and examples are true."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import _state
from pydantic import BaseModel

from routing.redis.permissions import COMMANDS
from tests.support.broker import Broker

ROOT = Path(__file__).parents[2]

PACKAGES = ["routing", "batching"]

PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def module_names(package: str) -> Iterator[str]:
    found = importlib.import_module(package)
    yield package
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        yield module.name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_tour_of_its_package(package: str) -> None:
    module = importlib.import_module(package)
    documented = (module.__doc__ or "") + (
        importlib.import_module(f"{package}.errors").__doc__ or ""
    )
    words = set(re.findall(r"\w+", documented))
    assert set(module.__all__) - words == set(), "name them in the package's docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    module = importlib.import_module(package)
    silent = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert silent == []
    assert module.__all__ == sorted(module.__all__)


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in module_names(package)])
def test_examples_are_true(name: str) -> None:
    outcome = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.failed == 0


def test_the_documented_permissions_are_those_that_the_engine_asks_for() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert re.findall(r"\+([a-z|]+)\b", text) == list(COMMANDS)


def test_every_log_event_has_a_row_and_every_row_an_event() -> None:
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    known = json.loads((ROOT / "tests" / "compatibility.json").read_text())["events"]
    assert [name for name, _ in rows] == sorted(known), "see tests/test_compatibility.py"
    words = {
        "warning": {"warning", "log"},
        "error": {"error", "exception", "log"},
        "info": {"info"},
    }
    for name, level in rows:
        assert words[level] & set(known[name]), f"{name} is not logged as {level}"


def links(page: Path) -> Iterator[Path]:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        yield (page.parent / target).resolve()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_links_and_named_files_are_there(page: str) -> None:
    path = ROOT / page
    assert [link for link in links(path) if not link.exists()] == []
    named = re.findall(r"\b((?:routing|batching|tasks|tests|docs)/[\w/]+\.\w+)", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tour_names_files_that_are_there(package: str) -> None:
    tour = importlib.import_module(package).__doc__ or ""
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|lua))`", tour)
    assert named
    assert [name for name in named if not (ROOT / package / name).exists()] == []


def blocks(kind: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_snippets_of_the_readme_run(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queues.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_state, "_on_app_finalizers", set())  # its tasks are shared with all apps

    class Flight(BaseModel):
        number: int

    row = {"number": 1}
    known: dict[str, Any] = {"Flight": Flight, "row": row, "rows": [row, row]}
    for snippet in blocks("python"):
        exec(snippet.replace("redis://localhost:6379/0", broker_url), known)
    app = known["app"]
    with Broker(broker_url) as broker:
        assert sum(broker.length(queue) for queue in app.amqp.topology.queues) == 4
    app.conf.task_always_eager = True
    known["insert_many"] = lambda batch: []
    assert known["load"].delay(row).successful()
    known["insert_many"] = lambda batch: [(item, ValueError("no")) for item in batch]
    assert known["load"].delay(row).failed()
    app.pool.force_close_all()
    app.close()


@pytest.mark.parametrize(
    "line", re.findall(r"^ +\$ (celery .*?)(?:  +#.*)?$", (ROOT / "README.md").read_text(), re.M)
)
def test_the_commands_of_the_readme_are_commands(
    line: str, broker_url: str, tmp_path: Path
) -> None:
    env = {**os.environ, "CELERIAC_BROKER_URL": broker_url, "CELERIAC_DATA_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-m", *line.split()], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "Usage:" not in found.stderr, found.stderr
    assert "Traceback" not in found.stderr, found.stderr
    assert found.returncode in (0, 1, 2)  # 1 and 2 are what doctor and replay found
