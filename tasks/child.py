"""One child process: started with its output in a log, asked to end, and ended with its group.

A child leads a process group of its own, so that Ctrl-C in a terminal reaches it only through its
starter. When its starter ends it, what it has started ends with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

#: Seconds between two looks whether it is ready.
POLL_SECONDS = 0.05


class Child:
    """A process that its starter sees to the end.

    Arguments:
        command: its command line.
        log: the file that its output is appended to.
        cwd: its working directory; None for ours.
        env: its environment; None for ours.
        leads: whether it leads a group of its own; else it is one of ours, and shares our signals.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        leads: bool = True,
    ) -> None:
        self.log = log
        self._command = list(command)
        self._cwd = cwd
        self._env = env
        self._leads = leads
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> Self:
        """Start it, also again after its end.

        Arguments:
            stdin: what it reads there.
            pass_fds: descriptors that it inherits.
        """
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                process_group=0 if self._leads else None,
                pass_fds=pass_fds,
            )
        if self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as pipe:
                pipe.write(stdin)  # one that has ended already reads nothing; `code` tells
        return self

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ValueError: it was never started.
        """
        if self._process is None:
            raise ValueError(f"not started yet: {' '.join(self._command)}")
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs, and before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, is_ready: Callable[[], bool], seconds: float) -> bool:
        """Return whether it is ready, after so many seconds at most; False when it has ended.

        Arguments:
            is_ready: says whether; asked again and again.
            seconds: how long to wait.
        """
        until = time.monotonic() + seconds
        while not is_ready():
            if not self.running or time.monotonic() > until:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def send(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal, unless it has ended."""
        if self._process is not None:
            self._process.send_signal(how)

    def wait(self, seconds: float | None = None) -> int:
        """Return how it ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
            ValueError: it was never started.
        """
        if self._process is None:
            raise ValueError(f"not started yet: {' '.join(self._command)}")
        return self._process.wait(seconds)

    def stop(self, seconds: float) -> None:
        """Ask it to end, wait for so long, and end what is left; stopping twice is safe."""
        if not self.running:
            return
        self.send()
        try:
            self.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._end()

    def kill(self) -> None:
        """End it at once, and what it has started; killing twice is safe."""
        if self.running:  # else its number may be another's by now
            self._end()

    def _end(self) -> None:
        if self._process is None:
            return
        if self._leads:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
