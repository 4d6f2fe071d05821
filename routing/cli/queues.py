"""``celery queues``: where every message of every queue is, and whether the ledger balances."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from celery.bin.base import (
    COMMA_SEPARATED_LIST,
    CeleryCommand,
    CeleryOption,
    handle_preload_options,
)

from routing.cli import state
from routing.cli.broker import Unavailable, engine_channel, table_of
from routing.cli.output import Column, age, lines, terminal_width
from routing.cli.settings import reset, set_, settings
from routing.redis.ledger import (
    ARRIVALS,
    DEPARTURES,
    ENDINGS,
    EVENTS,
    Ledger,
    QueueLedger,
    read,
    rebase,
)
from routing.settings import QueueControl
from routing.topology.live import LiveTable
from routing.topology.problems import close_to

WATCH_SECONDS = 2.0

#: Shown also when they are 0 everywhere.
ALWAYS = {"waiting", "unacked", "accepted", "done", "in/s", "out/s"}

#: What a reader looks for comes first; the other counters follow.
FIRST = (*ARRIVALS, "done", "failed", "dead", "dropped")
COUNTERS = tuple(dict.fromkeys((*FIRST, *ENDINGS, *DEPARTURES)))


class _Queues(CeleryCommand, click.Group):
    """A command with options of its own, and commands below it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=_Queues, invoke_without_command=True)
@click.option(
    "-Q",
    "--queues",
    "names",
    cls=CeleryOption,
    type=COMMA_SEPARATED_LIST,
    help_group="Queues Options",
    help="Comma separated list of queues to show. Default: all of the table.",
)
@click.option(
    "--json",
    "as_json",
    cls=CeleryOption,
    is_flag=True,
    help_group="Queues Options",
    help="Print every figure as one JSON object a line.",
)
@click.option(
    "--watch",
    cls=CeleryOption,
    is_flag=False,
    flag_value=WATCH_SECONDS,
    type=click.FloatRange(min=0.1),
    metavar="[SECONDS]",
    help_group="Queues Options",
    help=f"Show it again every so many seconds ({WATCH_SECONDS:g}), with rates, until Ctrl-C.",
)
@click.option(
    "--verify",
    cls=CeleryOption,
    is_flag=True,
    help_group="Queues Options",
    help="Count what is unacknowledged in the records too, and say where the ledger differs.",
)
@click.option(
    "--rebase",
    cls=CeleryOption,
    is_flag=True,
    help_group="Queues Options",
    help="Book the present differences as 'unaccounted': for queues that had messages before "
    "there was a ledger, or that stock producers and workers share.",
)
@click.pass_context
@handle_preload_options
def queues(
    ctx: click.Context,
    names: Sequence[str] | None,
    as_json: bool,
    watch: float | None,
    verify: bool,
    rebase: bool,
    **_: object,
) -> None:
    """Show where every message is, how messages ended, and what is missing.

    Every accepted message waits, is delayed, is unacknowledged, or is counted by how it ended.
    What that leaves is the difference, 0 for queues that only this platform uses. A queue is
    INCOMPLETE when something was dropped or the difference is not 0. Its state also says when it is
    paused, draining, full, or has messages that no live worker consumes.
    """
    if ctx.invoked_subcommand is not None:
        return
    app = ctx.obj.app
    chosen = _chosen(app, names)
    if watch is not None:
        if rebase:
            raise click.UsageError("--rebase is done once: leave --watch out")
        _watch(ctx, chosen, as_json=as_json, seconds=watch, recount=verify)
        return
    if rebase:
        _rebase(app, chosen)
    _show(ctx, *_read(app, chosen, recount=verify or rebase), as_json=as_json)


for command in (set_, reset, settings):
    queues.add_command(command)


def _chosen(app: Any, names: Sequence[str] | None) -> list[str]:
    known = list(table_of(app).queues)
    for name in names or ():
        if name not in known:
            meant = close_to(name, known)
            hint = f", did you mean {meant!r}?" if meant else f"; it has {', '.join(known)}"
            raise click.BadParameter(f"{name!r} is no queue of the table{hint}")
    return list(names or known)


def _read(app: Any, names: Sequence[str], *, recount: bool) -> tuple[Ledger, LiveTable]:
    with engine_channel(app) as channel:
        ledger = read(channel.plain_client, channel.commands, names, recount=recount)
        return ledger, QueueControl(app, channel).live()


def _rebase(app: Any, names: Sequence[str]) -> None:
    with engine_channel(app) as channel:
        client, commands = channel.plain_client, channel.commands
        ledgers = read(client, commands, names, recount=True).queues
        if not any(map(_is_wrong, ledgers)):
            click.echo("every queue adds up: there is nothing to book", err=True)
        for ledger in ledgers:
            if not _is_wrong(ledger):
                continue
            if rebase(client, commands, ledger):
                click.echo(f"{ledger.queue}: booked {_booked(ledger)}", err=True)
            else:
                click.echo(f"{ledger.queue}: booked by somebody else meanwhile", err=True)


def _is_wrong(ledger: QueueLedger) -> bool:
    return bool(ledger.difference or ledger.misheld or ledger.misparked)


def _booked(ledger: QueueLedger) -> str:
    parts = [f"{ledger.misheld + ledger.misparked - ledger.difference:+,} as unaccounted"]
    if ledger.misheld:
        parts.append(f"{ledger.misheld:+,} as unacked")
    if ledger.misparked:
        parts.append(f"{ledger.misparked:+,} as blocked")
    return ", ".join(parts)


def _watch(
    ctx: click.Context, names: Sequence[str], *, as_json: bool, seconds: float, recount: bool
) -> None:
    clears = sys.stdout.isatty() and not as_json
    before: Ledger | None = None
    with _until_interrupted() as interrupted:
        while not interrupted.is_set():
            try:
                ledger, table = _read(ctx.obj.app, names, recount=recount)
            except Unavailable as error:
                click.echo(f"{error.message}; trying again", err=True)
            else:
                if clears:
                    click.clear()
                elif before is not None and not as_json:
                    click.echo()
                _show(ctx, ledger, table, as_json=as_json, before=before)
                before = ledger
                if not as_json:
                    click.echo(f"\nevery {seconds:g} s, Ctrl-C ends")
            interrupted.wait(seconds)


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Set the event at Ctrl-C; a second one interrupts.

    An exception out of nowhere would be lost when it comes while a connection is being collected.
    """
    interrupted = threading.Event()

    def interrupt(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _show(
    ctx: click.Context,
    ledger: Ledger,
    table: LiveTable,
    *,
    as_json: bool,
    before: Ledger | None = None,
) -> None:
    if as_json:
        click.echo(json.dumps(state.as_json(ledger, table)))
        return
    for line in table_lines(ledger, table=table, before=before, width=terminal_width()):
        bad = line.endswith(("INCOMPLETE", "no consumer"))
        ctx.obj.echo(ctx.obj.style(line, fg="red") if bad else line)
    remarks = [f"{one.queue}: {remark}" for one in ledger.queues for remark in one.remarks()]
    if any(one.recorded is not None for one in ledger.queues):
        wrong = sum(one.misheld != 0 for one in ledger.queues)
        remarks.append(
            f"counted again: the unacknowledged of {wrong} queues differ"
            if wrong
            else "counted again: what is unacknowledged agrees with the records"
        )
    if remarks:
        ctx.obj.echo("\n" + "\n".join(remarks))


def table_lines(
    ledger: Ledger,
    *,
    width: int,
    before: Ledger | None = None,
    table: LiveTable | None = None,
) -> Iterator[str]:
    """Yield the lines of the table; columns that are 0 everywhere are left out.

    Arguments:
        ledger: what to show.
        width: characters that fit in a line; further columns go to a table below.
        before: an earlier reading, for the rates since then.
        table: what holds for the queues now, for their bounds and states.
    """
    rows = ledger.queues
    columns = [_numbers("waiting", [row.waiting for row in rows])]
    if table is not None and any(state.fills(row, table) for row in rows):
        columns.append(Column("fill", [state.fill_text(row, table) for row in rows]))
    columns.append(_numbers("blocked", [row.blocked for row in rows]))
    columns.append(_numbers("delayed", [row.delayed for row in rows]))
    columns.append(_numbers("unacked", [row.unacked for row in rows]))
    columns.append(_numbers("consumers", [row.consumers or 0 for row in rows]))
    if any(row.oldest_seconds is not None for row in rows):
        columns.append(Column("oldest", [age(row.oldest_seconds) for row in rows]))
    if before is not None:
        columns += _rates(ledger, before)
    columns += [_counter(name, rows) for name in COUNTERS]
    if any(row.dead_letters != row["dead"] for row in rows):
        columns.append(_numbers("dead letters", [row.dead_letters for row in rows]))
    columns += [_counter(name, rows) for name in EVENTS]
    shown = [one for one in columns if one.title in ALWAYS or set(one.cells) != {"0"}]
    states = [", ".join(state.states(row, table)) or "ok" for row in rows]
    last = [
        Column("difference", [f"{row.difference:+,}" if row.difference else "0" for row in rows]),
        Column("state", states, is_text=True),
    ]
    names = Column("queue", [row.queue for row in rows], is_text=True)
    yield from lines(names, shown, last, width=width)


def _numbers(title: str, values: Sequence[int]) -> Column:
    return Column(title, [f"{value:,}" for value in values])


def _counter(name: str, rows: Sequence[QueueLedger]) -> Column:
    return _numbers(name.replace("_", " "), [row[name] for row in rows])


def _rates(ledger: Ledger, before: Ledger) -> Iterator[Column]:
    seconds = max(ledger.server_ms - before.server_ms, 1) / 1000
    pairs = list(zip(ledger.queues, before.queues, strict=True))
    yield _numbers("in/s", [round((now.arrived - old.arrived) / seconds) for now, old in pairs])
    yield _numbers("out/s", [round((now.gone - old.gone) / seconds) for now, old in pairs])
