from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Large blocks that come and go between small ones that stay, as messages do between what a worker
#: keeps; prints by how many bytes the process has grown, before the timer's turn and after it.
COME_AND_GO = """
import os
from routing.worker.heap import keep_trimmed

class Timer:
    def call_repeatedly(self, seconds, call):
        self.fire = call

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

timer = Timer()
keep_trimmed(timer)
bytes(8 * 1024**2)  # the largest so far: glibc keeps all that is smaller
before = resident()
large, small = [], []
for n in range(200):
    large.append(b"x" * (300_000 + n))
    small.append(b"y" * 20_000)
large.clear()
print(resident() - before)
timer.fire()
print(resident() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs glibc, whose heap this is about"
)
def test_what_is_free_between_what_stays_goes_back_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COME_AND_GO], capture_output=True, text=True, check=True
    )
    grown, kept = map(int, done.stdout.split())
    assert grown > 40_000_000
    assert kept < 10_000_000
