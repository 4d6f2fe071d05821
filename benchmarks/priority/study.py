"""All cells of ``priority``. ``--size`` is the number of urgent calls of a cell."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.priority import lending, shares, siblings, starts
from benchmarks.runner import Cell, Grid


def cells() -> Iterator[Cell]:
    """Yield every cell."""
    yield from starts.cells()
    yield from shares.cells()
    yield from lending.cells()
    yield from siblings.cells()


GRID = Grid(
    name="priority",
    summary="start of urgent calls beside a backlog, ours and stock; shares, lending, siblings",
    size=500,
    cells=cells,
    compare=starts.compare,
    in_all=False,
)
