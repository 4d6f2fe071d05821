"""Workers that need not import Celery first: they are forked from a process that has.

More than half of what a short-lived worker costs is its imports. A `Nursery` does them once, for
all workers of a test process, and then each of them is a fork that goes on as ``python -m celery``
does: with its own session, environment, working directory and log, and its app imported on its own.
A gevent worker must patch before anything is imported, so these have a nursery of their own.

    python -m tests.support.nursery PATH [gevent]    listens on a Unix socket until its input ends
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

#: What every worker of a test imports; no module of an app among it.
IMPORTS = (
    "batching",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "celery.worker.control",
    "celery.worker.strategy",
    "routing",
    "routing.transport.transport",
)

START_SECONDS = 60
READ_BYTES = 131_072


class Forked:
    """A process of the nursery, as a `Child` is to its starter."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._connection = connection

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._ended(0) is None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it lives on.
        """
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
        return code

    def send(self, how: int) -> None:
        """Send a signal, unless it has ended."""
        if self.running:
            os.kill(self.pid, how)

    def kill(self) -> None:
        """End it at once, and what is left of its group."""
        if not self.running:
            return
        for kill in (os.killpg, os.kill):  # it may lead no group yet
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        self.wait()

    def _ended(self, seconds: float | None) -> int | None:
        if self._code is not None:
            return self._code
        self._connection.settimeout(seconds)
        try:
            answer = self._connection.recv(READ_BYTES)
        except (BlockingIOError, TimeoutError):
            return None
        assert answer, "the nursery has ended"
        self._code = int(answer)
        self._connection.close()  # now its process id may be given to another
        return self._code


class Nursery:
    """The process that workers are forked from; started by the first one.

    Arguments:
        pool: "gevent" for workers of this pool, empty for those of all others.
    """

    def __init__(self, pool: str = "") -> None:
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = ""

    def can_start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Return whether a worker of the nursery is like one that is started by a command."""
        differing = {name for name, value in env.items() if os.environ.get(name) != value}
        is_celery = list(command[:3]) == [sys.executable, "-m", "celery"]
        is_python_set_up = any(name.startswith("PYTHON") for name in differing - {"PYTHONPATH"})
        is_for_it = ("gevent" in command) == bool(self._pool)
        return is_celery and is_for_it and not is_python_set_up

    def start(self, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> Forked:
        """Start a worker by its command line, with its output at the end of a file."""
        path = self._path()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(START_SECONDS)
        connection.connect(path)
        request = {"command": list(command), "env": dict(env), "log": str(log)}
        connection.sendall(json.dumps(request).encode())
        return Forked(connection, int(connection.recv(READ_BYTES)))

    def _path(self) -> str:
        """Return the path of the socket; starts the process."""
        if self._process is None:
            self._directory = tempfile.mkdtemp(prefix="n")
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, self._socket, *filter(None, [self._pool])],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            atexit.register(self.close)
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == b"ready\n", "the nursery did not start"
        return self._socket

    @property
    def _socket(self) -> str:
        return f"{self._directory}/s"

    def close(self) -> None:
        """End it; its workers live on, as children of nobody."""
        process, self._process = self._process, None
        if process is None:
            return
        process.communicate()
        shutil.rmtree(self._directory)


NURSERIES = (Nursery(), Nursery("gevent"))


# -- the process -------------------------------------------------------

#: As they were before gevent patched them: they begin no loop, which a fork would inherit.
_fork, _waitpid, _Socket = os.fork, os.waitpid, socket.SocketType


class _Children:
    """Forks workers, and tells whoever asked for one how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._ends: dict[int, int] = {}
        self._pids: dict[socket.socket, int] = {}

    def serve(self) -> dict[str, Any] | None:
        """Return in each forked process what it is to do, and None at the end of the input."""
        while True:
            for key, _ in self._selector.select():
                match key.fileobj:
                    case self._listener:
                        if (order := self._fork()) is not None:
                            return order
                    case _Socket() as connection:
                        self._forget(connection)
                    case int() as end:
                        self._tell(end)
                    case _:
                        return None

    def _fork(self) -> dict[str, Any] | None:
        descriptor, _ = self._listener._accept()
        connection = _Socket(fileno=descriptor)
        order: dict[str, Any] = json.loads(connection.recv(READ_BYTES))
        if (pid := _fork()) == 0:
            self._close(connection)
            return order
        connection.send(str(pid).encode())
        self._pids[connection] = pid
        end = os.pidfd_open(pid)
        self._ends[end] = pid
        self._selector.register(end, selectors.EVENT_READ)
        self._selector.register(connection, selectors.EVENT_READ)
        return None

    def _close(self, connection: socket.socket) -> None:
        """Leave a fork without what belongs to the nursery."""
        for other in (self._listener, connection, *self._pids):
            other.close()
        for end in self._ends:
            os.close(end)
        self._selector.close()

    def _tell(self, end: int) -> None:
        self._selector.unregister(end)
        os.close(end)
        pid = self._ends.pop(end)
        # It is looked at and not collected: until its code is known, its id must stay its own.
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        asking = [connection for connection, child in self._pids.items() if child == pid]
        if not asking:
            _waitpid(pid, 0)
        for connection in asking:
            try:
                connection.send(str(code).encode())
            except OSError:
                self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        pid = self._pids.pop(connection)
        if pid not in self._ends.values():
            _waitpid(pid, 0)


def _become(order: Mapping[str, Any]) -> None:
    """Be what ``command`` would be, started with this environment."""
    os.setsid()
    with ExitStack() as stack:
        log = stack.enter_context(Path(order["log"]).open("ab"))
        nothing = stack.enter_context(Path(os.devnull).open("rb"))
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    paths = [path for path in order["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ.clear()
    os.environ.update(order["env"])
    _, _, module, *arguments = order["command"]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main(path: str, pool: str = "") -> None:
    """Import, listen, and go on as a worker in each fork."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        children = _Children(listener)
        if pool == "gevent":
            importlib.import_module("gevent.monkey").patch_all()
        for name in IMPORTS:
            importlib.import_module(name)
        print("ready", flush=True)
        order = children.serve()
    if order is not None:
        _become(order)


if __name__ == "__main__":
    main(*sys.argv[1:])
