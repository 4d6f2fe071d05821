"""The command line of the demo: ``python -m tasks.demo [--json] [--limit N] [--workers N]``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

import kombu.pools

from tasks.celery import app
from tasks.demo import source
from tasks.demo.account import Account
from tasks.demo.endings import disconnect_backend
from tasks.demo.local import LocalPlatform, LocalPlatformError
from tasks.demo.run import Run, Stalled
from tasks.settings import Settings

#: Two workers on two cores: one inserts while the other validates, and a restart of one of them
#: stops nothing.
WORKERS = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when the account balances, 1 when it does not, 130 when interrupted."""
    options = _options(arguments)
    logging.basicConfig(format="demo: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # also where a shell has it ignored
    try:
        account = _run(Settings(), options)
    except KeyboardInterrupt:
        print("demo: interrupted; what is queued stays queued", file=sys.stderr)
        return 130
    except (LocalPlatformError, Stalled, source.SourceMissing) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(json.dumps(account.as_json()) if options.json else account.as_text(celery=_celery()))
    for difference in account.differences():
        print(f"demo: the account does not balance: {difference}", file=sys.stderr)
    return 1 if account.differences() else 0


def _run(settings: Settings, options: argparse.Namespace) -> Account:
    app.finalize()  # before threads share its tasks
    platform = LocalPlatform(settings, workers=options.workers, count_workers=_count_workers)
    with platform:
        try:
            return Run(
                app, limit=min(options.limit, source.TOTAL), watch=platform.replace_ended
            ).complete()
        finally:
            _disconnect()


def _celery() -> str:
    """The command that starts this environment's Celery from here."""
    ours = Path(sys.executable).parent / "celery"
    if shutil.which("celery") == str(ours):
        return "celery"
    return os.path.relpath(ours) if ours.is_relative_to(Path.cwd()) else str(ours)


def _count_workers(wanted: int) -> int:
    """How many workers answer within a second; no longer asked when as many as wanted have."""
    return len(app.control.ping(timeout=1.0, limit=wanted))


def _disconnect() -> None:
    """Close this process's connections: the broker waits for its clients to leave."""
    disconnect_backend(app)
    kombu.pools.reset()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.demo",
        description="Load the real flights of a year as batches, with urgent calls meanwhile.",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--limit", type=_count, default=source.TOTAL, metavar="N", help="load the first N flights"
    )
    parser.add_argument(
        "--workers", type=_count, default=WORKERS, metavar="N", help="workers, when none runs yet"
    )
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
