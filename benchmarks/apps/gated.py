"""Short tasks under limits of all workers together; ``python -m benchmarks.apps.gated COUNT``.

BENCH_LIMITS   what limits the queue, as JSON
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.apps.runs import Run, path_of
from benchmarks.apps.settings import Settings, create_app
from routing import install

QUEUE = "gated"

#: Short, so that what a killed worker held is back soon.
LEASE_SECONDS = 3.0

settings = Settings.from_environment()
app = create_app("gated", settings)
limits: dict[str, Any] = json.loads(os.environ.get("BENCH_LIMITS", "{}"))
install(
    app,
    {
        "queues": {QUEUE: {"prefetch": settings.prefetch, "max_deliveries": 50, **limits}},
        "lease_seconds": LEASE_SECONDS,
    },
)


@app.task(name="bench.gated", ignore_result=True)
def gated(number: int) -> None:
    """Note when it ran."""
    began = time.monotonic_ns()
    run = Run(number=number, sent_ns=0, began_ns=began, ended_ns=time.monotonic_ns())
    with path_of(settings.directory, QUEUE, os.getpid()).open("ab") as file:
        file.write(run.pack())


if __name__ == "__main__":
    gated.delay_many(range(int(sys.argv[1]))).raise_for_refused()
    print(json.dumps({"count": int(sys.argv[1])}))
