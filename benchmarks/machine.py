"""What a figure was measured on: the machine and the versions, as plain values for JSON.

Stock's drain is bound by one process and ours uses all cores, so a machine that does something else
at the same time slows ours more: the ratios are only fair on an idle one. `is_busy` tells.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("celery", "kombu", "billiard", "redis", "hiredis", "orjson", "pydantic")


def machine() -> dict[str, str | int | float]:
    """Return CPU model, usable cores, memory and the load of the last minute."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_busy() -> bool:
    """Return whether others kept a quarter of the cores busy in the last minute."""
    return os.getloadavg()[0] > cores() / 4


def cpu_model() -> str:
    """Return the model as Linux prints it, or what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def versions(server: str) -> dict[str, str]:
    """Return the versions of Python, the packages and the server."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["server"] = server
    return found
