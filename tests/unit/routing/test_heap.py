from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from routing.heap import _VARIABLES

#: Large blocks that come and go between small ones that stay, as messages do between what a worker
#: keeps; prints by how many bytes the process has grown when the large ones are gone.
COME_AND_GO = """
import os, sys
from routing.heap import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "returned":
    return_large_blocks()
bytes(8 * 1024**2)  # the largest so far: glibc would keep all that is smaller
before = resident()
large, small = [], []
for n in range(200):
    large.append(b"x" * (300_000 + n))
    small.append(b"y" * 20_000)
large.clear()
print(resident() - before)
"""


def growth(how: str, **environment: str) -> int:
    inherited = {k: v for k, v in os.environ.items() if k not in _VARIABLES}
    finished = subprocess.run(
        [sys.executable, "-c", COME_AND_GO, how],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"),
    reason="needs glibc, whose heap this is about",
)


def test_large_blocks_go_back_to_the_system() -> None:
    assert growth("kept") > 40_000_000
    assert growth("returned") < 10_000_000


def test_a_limit_that_the_user_has_set_stays() -> None:
    assert growth("returned", MALLOC_MMAP_THRESHOLD_="33554432") > 40_000_000
