"""The heap of a worker, and what must not keep it large."""

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

#: The same, and what lies between is garbage in cycles.
IN_CYCLES = COME_AND_GO.replace('b"y" * 20_000', "cycle()").replace(
    "large.clear()", "large.clear(); small.clear()"
)
CYCLE = """
import gc
gc.disable()

def cycle():
    one = [b"y" * 20_000]
    one.append(one)
    return one
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs glibc, whose heap this is about"
)
@pytest.mark.parametrize(
    ("script", "least"), [(COME_AND_GO, 10_000_000), (CYCLE + IN_CYCLES, 2_000_000)]
)
def test_what_is_free_between_what_stays_goes_back_to_the_system(script: str, least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    grown, kept = map(int, done.stdout.split())
    assert grown > 40_000_000
    assert kept < least
