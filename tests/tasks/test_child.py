"""A child process: its log, its end, and what it has started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tasks.child import Child
from tests.support.wait import eventually

SLEEPS = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); {SLEEPS}"
WITH_A_GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"


def child(directory: Path, program: str, *, leads: bool = True) -> Child:
    return Child([sys.executable, "-uc", program], log=directory / "log", leads=leads)


def test_what_it_writes_is_in_its_log_and_how_it_ended_is_known(tmp_path: Path) -> None:
    one = child(tmp_path, "import sys; print(sys.stdin.read()); sys.exit(3)")
    assert one.code is None
    assert not one.running
    assert one.start(stdin=b"read").wait(60) == 3
    assert one.code == 3
    assert not one.running
    assert one.log.read_text() == "read\n"


def test_one_that_ends_before_it_reads_is_started_all_the_same(tmp_path: Path) -> None:
    one = Child([sys.executable, "-c", "import os; os.close(0)"], log=tmp_path / "log")
    assert one.start(stdin=b"x" * 10_000_000).wait(60) == 0


def test_it_is_started_again_after_its_end(tmp_path: Path) -> None:
    one = child(tmp_path, "print('again')")
    for _ in range(2):
        assert one.start().wait(60) == 0
    assert one.log.read_text() == "again\nagain\n"


def test_one_is_ready_when_it_says_so_and_never_when_it_has_ended(tmp_path: Path) -> None:
    one = child(tmp_path, f"print('up'); {SLEEPS}").start()
    assert one.wait_ready(lambda: one.log.read_text() == "up\n", 60)
    assert not one.wait_ready(lambda: False, 0.1)
    one.kill()
    assert not one.wait_ready(lambda: False, 60)


def test_it_is_asked_before_it_is_ended(tmp_path: Path) -> None:
    one = child(tmp_path, SLEEPS).start()
    one.stop(60)
    assert one.code == -signal.SIGTERM
    one.stop(60)


@pytest.mark.parametrize("leads", [True, False])
def test_one_that_does_not_listen_is_ended(tmp_path: Path, *, leads: bool) -> None:
    one = child(tmp_path, STUBBORN, leads=leads).start()
    eventually(one.log.read_text)
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0)
    one.stop(0.1)
    assert one.code == -signal.SIGKILL
    one.kill()


def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    one = child(tmp_path, WITH_A_GRANDCHILD).start()
    (grandchild,) = eventually(psutil.Process(one.pid).children)
    one.stop(60)
    assert one.code == -signal.SIGTERM
    eventually(lambda: not grandchild.is_running() or grandchild.status() == "zombie")


def test_one_that_was_never_started_has_no_process_id(tmp_path: Path) -> None:
    one = child(tmp_path, SLEEPS)
    one.stop(1)
    one.kill()
    with pytest.raises(ValueError, match="not started yet"):
        _ = one.pid
