"""The broker of a command's app, opened once, with errors that say what to do.

A command line waits for nothing: a broker that is away ends it at once, with a status for scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from celery.platforms import EX_UNAVAILABLE
from kombu.exceptions import OperationalError

from routing.redis.faults import ANY_FAULT, LOST
from routing.redis.permissions import COMMANDS, denied, grant, is_denied, unless_denied
from routing.topology.model import Topology
from routing.transport.channel import EngineMixin
from routing.transport.runtime import topology_of

#: As sysexits.h has it.
EX_NOPERM = 77


class Unavailable(click.ClickException):
    """The broker does not answer."""

    exit_code = EX_UNAVAILABLE


class NotAllowed(click.ClickException):
    """The broker's user may not run what the command needs."""

    exit_code = EX_NOPERM


def table_of(app: Any) -> Topology:
    """Return the queue table of a command's app.

    Raises:
        click.UsageError: it has none.
    """
    table = topology_of(app)
    if table is None:
        raise click.UsageError(
            f"app {app.main!r} has no queue table: name an app that calls routing.install, "
            "as in: celery -A tasks queues"
        )
    return table


@contextmanager
def engine_channel(app: Any) -> Iterator[EngineMixin]:
    """Open a channel of the engine for the time of a ``with`` block.

    Raises:
        click.UsageError: the app has no queue table, or its broker is not one of the engine's.
        Unavailable: the broker does not answer, at once or later in the block.
        NotAllowed: its user may not run what the block asks for.
    """
    table_of(app)
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            channel = connection.default_channel
            if not isinstance(channel, EngineMixin):
                raise click.UsageError(
                    f"{connection.as_uri()} is not Redis or Valkey: the engine, and what this "
                    "command shows, is off on other brokers"
                )
            yield channel
        except BrokenPipeError:
            raise  # the reader of this command's output has left, as `head` does
        except (*LOST, ANY_FAULT, OperationalError) as error:
            if is_denied(error):
                raise NotAllowed(_denial(app, connection, error)) from error
            if not isinstance(error, (*LOST, OperationalError)):
                raise
            remedy = app.conf.get("broker_remedy")
            raise Unavailable(
                f"the broker at {connection.as_uri()} does not answer: {str(error).rstrip('.')}"
                + (f"; {remedy}" if remedy else "")
            ) from error


def _denial(app: Any, connection: Any, error: Exception) -> str:
    def ask() -> list[str]:
        with app.connection_for_write() as another:
            channel = another.default_channel
            return denied(channel.plain_client, channel.commands.keys.workers())

    names = unless_denied(ask)
    if names == []:
        remedy = "it may run all commands, so it lacks a key, which ACL LOG on the server names"
    else:
        remedy = f"allow it with ACL SETUSER <user> {grant(names or list(COMMANDS))}"
    return (
        f"the user of {connection.as_uri()} may not do what this command needs: {error}; {remedy}"
    )
