"""What both apps share: where they connect, the two queues, and how a worker says that it is ready.

The runner passes everything in the environment, because the apps are loaded by ``celery -A`` in
processes of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready

WARM_QUEUE = "warm"
BENCH_QUEUE = "bench"

#: Tasks whose calls take as long as a call of a database, one by one and as batches.
SINK, SINK_LOAD = "bench.sink", "bench.sink_load"
SINK_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One side's settings in one round, as the runner chose them."""

    broker: str
    backend: str
    directory: Path
    store: bool = False
    prefetch: int = 1
    batch_size: int = 1

    @classmethod
    def from_environment(cls) -> Settings:
        """Read what ``to_environment`` wrote."""
        env = os.environ
        return cls(
            broker=env["BENCH_BROKER"],
            backend=env["BENCH_BACKEND"],
            directory=Path(env["BENCH_DIRECTORY"]),
            store=env["BENCH_STORE"] == "1",
            prefetch=int(env["BENCH_PREFETCH"]),
            batch_size=int(env["BENCH_BATCH_SIZE"]),
        )

    def to_environment(self) -> dict[str, str]:
        """Return the variables that a worker or a producer needs."""
        return {
            "BENCH_BROKER": self.broker,
            "BENCH_BACKEND": self.backend,
            "BENCH_DIRECTORY": str(self.directory),
            "BENCH_STORE": "1" if self.store else "0",
            "BENCH_PREFETCH": str(self.prefetch),
            "BENCH_BATCH_SIZE": str(self.batch_size),
        }


def create_app(name: str, settings: Settings) -> Celery:
    """Return an app with what both sides have in common."""
    app = Celery(name, broker=settings.broker, backend=settings.backend, set_as_current=True)
    app.conf.update(
        task_ignore_result=not settings.store,
        task_default_queue=BENCH_QUEUE,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    return app


def announce_ready(sender: Any, **_: Any) -> None:
    """Leave a file that tells the runner: this worker consumes."""
    settings = Settings.from_environment()
    (settings.directory / f"ready.{sender.hostname}").touch()


worker_ready.connect(announce_ready)
