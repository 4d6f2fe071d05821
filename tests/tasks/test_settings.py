from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from routing import Topology
from tasks.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CELERIAC_{name.upper()}", raising=False)


def test_the_defaults_need_no_server_and_no_environment() -> None:
    settings = Settings()
    assert settings.broker_url is None
    assert settings.database == f"sqlite:///{Path('.data').resolve() / 'flights.db'}"


def test_a_setting_comes_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_BROKER_URL", "rediss://user:secret@broker.example:6380/1")
    monkeypatch.setenv("CELERIAC_DATABASE_URL", "postgresql+psycopg://somewhere/flights")
    settings = Settings()
    assert settings.broker_url == "rediss://user:secret@broker.example:6380/1"
    assert settings.database == "postgresql+psycopg://somewhere/flights"


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_BROKER_URL", "")
    assert Settings().broker_url is None


def test_task_modules_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_TASK_MODULES", "shop.tasks, shop.reports,")
    assert Settings().task_modules == ("shop.tasks", "shop.reports")


def test_a_port_that_is_none_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_EMBEDDED_PORT", "70000")
    with pytest.raises(ValidationError, match="embedded_port"):
        Settings()


def test_every_setting_says_what_it_means_and_why_its_default() -> None:
    for name, field in Settings.model_fields.items():
        assert "Default" in (field.description or ""), name


def test_the_queue_table_is_valid_and_has_room_for_a_batch() -> None:
    topology = Topology.load(Settings().queues_file)
    assert topology.queue("bulk").prefetch >= 500
    assert topology.queue("realtime").reserve == 1
