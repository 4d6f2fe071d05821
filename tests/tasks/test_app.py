from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import current_app

import tasks
from tasks.celery import create_app, task_modules
from tasks.settings import Settings


@pytest.fixture(autouse=True)
def _keep_the_current_app() -> Iterator[None]:
    before = current_app._get_current_object()
    yield
    before.set_current()


def test_a_module_put_into_the_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reports.py").write_text("")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    assert task_modules(Settings()) == ["tasks.flights", "tasks.reports", "tasks.webhooks"]


def test_modules_that_a_setting_names_are_imported_too() -> None:
    found = task_modules(Settings(task_modules=("shop.tasks",)))
    assert found == ["tasks.flights", "tasks.webhooks", "shop.tasks"]


def test_a_worker_without_the_demo_extra_leaves_the_demo_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert task_modules(Settings()) == []


@pytest.mark.parametrize(
    ("broker", "backend"),
    [
        ("redis://:pw@one:6379/0;redis://:pw@two:6379/0", "redis://:pw@one:6379/0"),
        ("sentinel://one:26379;sentinel://two:26379", "sentinel://one:26379;sentinel://two:26379"),
        ("rediss://broker.example:6380/1", "rediss://broker.example:6380/1"),
    ],
)
def test_results_go_to_the_brokers_server(broker: str, backend: str) -> None:
    assert create_app(Settings(broker_url=broker)).conf.result_backend == backend


def test_results_go_to_a_server_of_their_own_when_one_is_set() -> None:
    settings = Settings(broker_url="redis://one/0", result_backend="redis://two/0")
    assert create_app(settings).conf.result_backend == "redis://two/0"


def test_the_celery_command_finds_the_app(environment: dict[str, str]) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", "report"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "tasks.flights" in finished.stdout
