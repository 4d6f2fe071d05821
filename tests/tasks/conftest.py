"""A platform of one's own for a test: its own folder, its own port, its own environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.embedded import EmbeddedBroker
from tasks.settings import Settings


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of processes whose data lies in this test's folder."""
    return environment_in(tmp_path)


def environment_in(folder: Path) -> dict[str, str]:
    """Return the environment of processes whose data lies in a folder."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_"))}
    return {
        **inherited,
        "CELERIAC_DATA_DIR": str(folder / "data"),
        "CELERIAC_EMBEDDED_PORT": str(free_port()),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    """The same as settings of this process."""
    return Settings(
        data_dir=Path(environment["CELERIAC_DATA_DIR"]),
        embedded_port=int(environment["CELERIAC_EMBEDDED_PORT"]),
    )


@pytest.fixture
def broker(settings: Settings) -> Iterator[EmbeddedBroker]:
    """The embedded broker, running."""
    with EmbeddedBroker(settings) as running:
        yield running
        running.stop(clients_grace_seconds=0)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
