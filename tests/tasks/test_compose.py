from __future__ import annotations

from pathlib import Path

import pytest
from compose_spec import PyCompose
from compose_spec.models import Service

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> PyCompose:
    read = PyCompose.from_yaml((ROOT / "docker-compose.yml").read_text())
    read.to_spec()  # validates the whole file
    return read


def service(compose: PyCompose, name: str) -> Service:
    found = compose.get_service(name)
    assert found is not None
    return found


def test_workers_scale_because_nothing_of_theirs_is_unique(compose: PyCompose) -> None:
    worker = service(compose, "worker")
    assert worker.container_name is None
    assert worker.ports is None
    assert worker.command == [
        *("celery", "-A", "tasks", "worker", "--concurrency", "2"),
        *("--task-events", "--loglevel", "INFO"),
    ]


def test_valkey_keeps_its_data_and_evicts_nothing(compose: PyCompose) -> None:
    valkey = service(compose, "valkey")
    assert "--appendonly yes" in valkey.command[-1]
    assert "noeviction" in valkey.command[-1]
    assert valkey.volumes
    assert "valkey" in compose.volumes


def test_flower_asks_for_a_password_and_is_reached_from_this_machine_only(
    compose: PyCompose,
) -> None:
    flower = service(compose, "flower")
    assert flower.environment["FLOWER_BASIC_AUTH"].startswith("${FLOWER_BASIC_AUTH:?")
    assert all(port.startswith("127.0.0.1:") for port in flower.ports)


def test_no_secret_has_a_default(compose: PyCompose) -> None:
    example = (ROOT / ".env.example").read_text()
    for name in ("VALKEY_PASSWORD", "POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH"):
        assert f"{name}=\n" in example


def test_every_service_says_whether_it_is_healthy(compose: PyCompose) -> None:
    for name in compose.service_names():
        assert service(compose, name).healthcheck is not None, name
