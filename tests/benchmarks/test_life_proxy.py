"""The link of the scenario ``life``: passes bytes on, and falls silent without a word."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.life.proxy import COUNTS_FILE, HOST
from tests.support.servers import free_port
from tests.support.wait import eventually
from tests.support.worker import ROOT

SECONDS = 10


class Link:
    """A proxy, and what listens behind it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.behind = socket.create_server((HOST, 0))
        self.behind.settimeout(SECONDS)
        command = [sys.executable, "-m", "benchmarks.life.proxy", str(self.port)]
        command += [str(self.behind.getsockname()[1]), str(directory)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return the two ends of a new connection."""
        near = eventually(self._near, SECONDS)
        far, _ = self.behind.accept()
        for end in (near, far):
            end.settimeout(SECONDS)
        return near, far

    def _near(self) -> socket.socket | None:
        try:
            return socket.create_connection((HOST, self.port), timeout=SECONDS)
        except ConnectionRefusedError:
            return None

    def counts(self) -> dict[str, int]:
        """Return what was swallowed."""
        path = self.directory / COUNTS_FILE
        text = path.read_text() if path.exists() else ""
        found: dict[str, int] = json.loads(text) if text else {}
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.behind.close()


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path)
    yield link
    link.close()


def swaps(near: socket.socket, far: socket.socket) -> bool:
    """Return whether bytes come through in both directions."""
    near.sendall(b"ping")
    if far.recv(4) != b"ping":
        return False
    far.sendall(b"pong" * 100_000)
    left = len(b"pong" * 100_000)
    while left:
        left -= len(near.recv(65_536))
    return True


def test_old_connections_are_swallowed_and_new_ones_are_served(link: Link) -> None:
    near, far = link.connect()
    with near, far:
        assert swaps(near, far)
        os.kill(link.process.pid, signal.SIGUSR1)
        eventually(lambda: link.counts().get("swallowed") == 1)
        near.sendall(b"lost")
        eventually(lambda: link.counts().get("used_afterwards") == 1)
        far.settimeout(0.2)
        with pytest.raises(TimeoutError):
            far.recv(4)
        with near.dup() as gone:
            gone.shutdown(socket.SHUT_RDWR)
        with pytest.raises(TimeoutError):
            far.recv(4)  # nobody is told that the other end has gone
        new_near, new_far = link.connect()
        with new_near, new_far:
            assert swaps(new_near, new_far)


def test_an_end_that_closes_takes_the_other_one_along(link: Link) -> None:
    near, far = link.connect()
    with far:
        near.close()
        assert far.recv(4) == b""
