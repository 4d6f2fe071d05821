"""What `benchmarks.apps.queued` is to be in one round: which side, with which queues.

The runner leaves it as a file in the round's directory; workers and producers read it there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One round's app.

    Arguments:
        side: with ours installed, or stock.
        queues: the queues of the queue table, in its order; stock uses their names.
        multiplier: stock's ``worker_prefetch_multiplier``.
    """

    side: Literal["ours", "stock"]
    queues: Mapping[str, Mapping[str, Any]]
    multiplier: int = 1

    @classmethod
    def read(cls, directory: Path) -> Plan:
        """Read what ``write`` wrote."""
        return cls(**json.loads((directory / FILE).read_text()))

    def write(self, directory: Path) -> None:
        """Leave it for the processes of the round."""
        (directory / FILE).write_text(json.dumps(dataclasses.asdict(self)))
