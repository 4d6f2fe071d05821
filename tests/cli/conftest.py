"""Commands of ``celery`` in this process, against a real broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click import Command
from click.testing import CliRunner, Result

from routing.transport.channel import EngineMixin
from tests.apps.basic import close, create

#: Runs a command with these arguments, as ``celery -A app command ...`` does.
Run = Callable[..., Result]


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    """The basic app, which the commands are given with ``-A``."""
    app = create(broker_url)
    yield app
    close(app)


@pytest.fixture
def channel(app: Celery) -> Iterator[EngineMixin]:
    """A channel of the app's broker, to bring messages into any place."""
    with app.connection_for_write() as connection:
        yield connection.default_channel


@pytest.fixture
def run(app: Celery) -> Run:
    """Run a command for the app; its output is not a terminal's."""

    def run(command: Command, *arguments: str, of: Any = app) -> Result:
        context = CLIContext(of, no_color=True, workdir=None)
        return CliRunner().invoke(command, arguments, obj=context, catch_exceptions=False)

    return run
