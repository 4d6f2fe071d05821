"""pytest-celery's containers as local processes, so that its tests need no Docker.

A process here has what pytest-celery uses of a Docker container; the container classes on top are
pytest-celery's own, with their addresses on the loopback.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from signal import SIGKILL, Signals
from typing import Any

from pytest_celery import (  # type: ignore[import-untyped]
    CeleryWorkerContainer,
    RedisContainer,
)

from tests.support.servers import Server
from tests.support.worker import Worker


class _Process:
    """What pytest-celery uses of a Docker container: an id, a name, a status, a log, signals."""

    def __init__(self, name: str) -> None:
        self.id = secrets.token_hex(32)
        self.name = f"{name}-{self.id[:6]}"
        self.attrs: Mapping[str, Any] = {
            "Config": {"Hostname": "127.0.0.1", "Env": []},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }

    def reload(self) -> None:
        """Do nothing: a process is looked at directly."""


def _signal(name: str | int | None) -> Signals:
    if name is None:
        return SIGKILL
    return Signals(name) if isinstance(name, int) else Signals[name]


class ServerProcess(_Process):
    """A Valkey as a container."""

    def __init__(self, server: Server) -> None:
        super().__init__("valkey")
        self.server = server

    @property
    def status(self) -> str:
        return "running" if self.server.running else "exited"

    def logs(self) -> bytes:
        return self.server.log_path.read_bytes()

    def kill(self, signal: str | int | None = None) -> None:
        self.server.stop(_signal(signal))

    def restart(self, timeout: float) -> None:
        self.server.restart()


class WorkerProcess(_Process):
    """A worker as a container."""

    def __init__(self, app_module: str, *, env: Mapping[str, str], concurrency: int) -> None:
        super().__init__("worker")
        self.worker = Worker(
            app_module,
            concurrency=concurrency,
            env={**env, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            name=f"{CeleryWorkerContainer.worker_name()}@{self.id[:12]}",
        )

    @property
    def status(self) -> str:
        return "running" if self.worker.running else "exited"

    def logs(self) -> bytes:
        return self.worker.log.encode()

    def kill(self, signal: str | int | None = None) -> None:
        how = _signal(signal)
        if how is SIGKILL:
            self.worker.kill()
        else:
            self.worker.send(how)
            self.worker.wait()

    def restart(self, timeout: float) -> None:
        self.worker.terminate()
        self.worker.start()


class LocalValkeyContainer(RedisContainer):
    """pytest-celery's Redis container over a Valkey of this machine."""

    def __init__(self, server: Server) -> None:
        super().__init__(ServerProcess(server))
        self.server = server

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def host_url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.port

    def teardown(self) -> None:
        self.server.close()


class LocalWorkerContainer(CeleryWorkerContainer):
    """pytest-celery's worker container over a worker process of this machine."""

    def __init__(self, app_module: str, *, env: Mapping[str, str], concurrency: int) -> None:
        self.process = WorkerProcess(app_module, env=env, concurrency=concurrency)
        super().__init__(self.process)

    @property
    def worker(self) -> Worker:
        """The worker."""
        return self.process.worker

    def teardown(self) -> None:
        self.worker.terminate()
