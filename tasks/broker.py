"""Which broker the platform uses, and the command that runs the embedded one.

``python -m tasks.broker`` runs it in the foreground until SIGTERM or Ctrl-C, ``… wait`` returns
when the broker answers, ``… url`` prints its URL. With ``CELERIAC_BROKER_URL`` set, that broker is
used and nothing is started.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from threading import Event
from types import FrameType

import kombu
from kombu.exceptions import OperationalError

from tasks import embedded
from tasks.embedded import BrokerError, EmbeddedBroker
from tasks.settings import Settings

START_SECONDS = embedded.START_SECONDS
POLL_SECONDS = 0.1


def broker_url(settings: Settings) -> str:
    """The URL of the broker in force: the one that is set, or the embedded one's."""
    return settings.broker_url or embedded.url(settings)


def answers(settings: Settings) -> bool:
    """Whether the broker in force takes connections."""
    if settings.broker_url is None:
        return embedded.answers(embedded.url(settings))
    connection = kombu.Connection(settings.broker_url, connect_timeout=2)
    try:
        connection.connect()
    except (OperationalError, *connection.connection_errors):
        return False
    finally:
        connection.release()
    return True


def wait_until_answers(
    settings: Settings, *, within_seconds: float = START_SECONDS, stop: Event | None = None
) -> bool:
    """True as soon as the broker answers; False after ``within_seconds`` or once ``stop`` is set.

    The URL is read again each time: a broker that finds its port taken moves to another.
    """
    stop = stop or Event()
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        if answers(settings):
            return True
        if stop.wait(POLL_SECONDS):
            break
    return False


def public(url: str) -> str:
    """``url`` without its password, fit to be printed."""
    return str(kombu.Connection(url).as_uri())


class Signalled(Event):
    """An event that a signal handler may set, also while `wait` holds the lock of a common one."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def set(self) -> None:
        """Note that it was signalled."""
        self._is_told = True

    def is_set(self) -> bool:
        """Return whether it was."""
        return self._is_told

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is, at most so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._is_told and (until is None or time.monotonic() < until):
            left = POLL_SECONDS if until is None else max(0.0, until - time.monotonic())
            time.sleep(min(POLL_SECONDS, left))
        return self._is_told


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.broker", description=__doc__)
    parser.add_argument("action", nargs="?", default="run", choices=("run", "wait", "url"))
    action = parser.parse_args(arguments).action
    logging.basicConfig(format="broker: %(message)s")
    stop = Signalled()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    commands = {"run": _run, "wait": _wait, "url": _print_url}
    try:
        commands[action](Settings(), stop)
    except BrokerError as error:
        print(f"broker: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _run(settings: Settings, stop: Event) -> None:
    """Stay in the foreground until ``stop``, also when the broker is somebody else's."""
    if settings.broker_url:
        print(f"broker: using {public(settings.broker_url)}, nothing to start", flush=True)
        stop.wait()
        return
    with EmbeddedBroker(settings) as broker:
        print(f"broker: ready at {public(embedded.url(settings))}", flush=True)
        while not stop.wait(POLL_SECONDS):
            broker.check()
        print("broker: stopping when its clients have left", flush=True)


def _wait(settings: Settings, stop: Event) -> None:
    if not wait_until_answers(settings, stop=stop):
        raise BrokerError(
            f"no broker answers at {public(broker_url(settings))}; start one with "
            "`python -m tasks.broker`, or set CELERIAC_BROKER_URL"
        )


def _print_url(settings: Settings, stop: Event) -> None:
    print(broker_url(settings))


if __name__ == "__main__":
    sys.exit(main())
