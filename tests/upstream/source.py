"""Celery's integration suite, as the source distribution of the installed version has it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

#: The suite, and the settings that it is collected with; not the package beside it, which would be
#: imported instead of the installed one.
WANTED = ("t", "pyproject.toml")


def fetch(directory: Path) -> Path:
    """Return the directory of the unpacked suite; downloads it once for each version of Celery."""
    name = f"celery-{version('celery')}"
    suite = directory / name
    if not suite.exists():
        _unpack(_archive(directory, name), suite)
    return suite


def _archive(directory: Path, name: str) -> Path:
    archive = directory / f"{name}.tar.gz"
    if not archive.exists():
        print(f"downloading the source distribution of {name}", flush=True)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", "celery"]
        options += ["--dest", str(directory), name.replace("-", "==", 1)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
    return archive


def _unpack(archive: Path, suite: Path) -> None:
    unfinished = suite.with_suffix(".unfinished")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            member.path = member.path.partition("/")[2]
            if member.path.partition("/")[0] in WANTED:
                tar.extract(member, unfinished, filter="data")
    unfinished.rename(suite)
