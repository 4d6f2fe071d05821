"""``celery queues set``, ``reset`` and ``settings``: what holds for queues at run time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options

from routing.cli.broker import engine_channel
from routing.cli.output import Column, lines, terminal_width
from routing.errors import SettingRefused
from routing.redis import consumers
from routing.settings import QueueControl
from routing.topology.live import SETTABLE, LiveTable, QueueSettings, shown

_BY = click.option(
    "--by",
    cls=CeleryOption,
    default="",
    help_group="Settings Options",
    help="Who sets it, for the list of settings. Default: this user on this host.",
)


@click.command(name="set", cls=CeleryCommand)
@click.argument("queue")
@click.argument("fields", nargs=-1, required=True, metavar="FIELD=VALUE ...")
@_BY
@click.pass_context
@handle_preload_options
def set_(ctx: click.Context, queue: str, fields: Sequence[str], by: str, **_: object) -> None:
    """Set fields of a queue; workers go by them within a second, restarted ones too.

    Fields are prefetch, weight, reserve, limit, lend_below, rate, concurrency, paused and drain.
    FIELD=none resets a field to the table. As in: celery queues set orders prefetch=16 paused=true
    """
    values = dict(_field(text) for text in fields)
    with _control(ctx) as (control, channel):
        before = control.live().queue(queue)
        now = control.set(queue, values, by=by)
        parts = [
            f"{name} {shown(getattr(now, name))} (was {shown(getattr(before, name))})"
            for name in values
        ]
        told = len(consumers.read(channel.plain_client, channel.commands.keys, [queue]))
    ctx.obj.echo(f"{queue}: {', '.join(parts)}; {_workers(told)}")


@click.command(cls=CeleryCommand)
@click.argument("queue")
@click.argument("fields", nargs=-1, metavar="[FIELD ...]")
@_BY
@click.pass_context
@handle_preload_options
def reset(ctx: click.Context, queue: str, fields: Sequence[str], by: str, **_: object) -> None:
    """Let the queue table hold again, for some fields of a queue or for all."""
    with _control(ctx) as (control, _channel):
        names = control.reset(queue, fields, by=by)
        now = control.live().queue(queue)
    if not names:
        what = f"none of {', '.join(fields)}" if fields else "nothing"
        ctx.obj.echo(f"{queue}: {what} is set, the table holds already")
        return
    parts = [f"{name} {shown(getattr(now, name, None))}" for name in names]
    ctx.obj.echo(f"{queue}: as in the table again: {', '.join(parts)}")


@click.command(cls=CeleryCommand)
@click.option(
    "--json",
    "as_json",
    cls=CeleryOption,
    is_flag=True,
    help_group="Settings Options",
    help="Print one JSON object a line.",
)
@click.option(
    "--log",
    "of_log",
    cls=CeleryOption,
    is_flag=True,
    help_group="Settings Options",
    help="Show the last hundred changes instead, the newest first.",
)
@click.pass_context
@handle_preload_options
def settings(ctx: click.Context, as_json: bool, of_log: bool, **_: object) -> None:
    """List what is set for queues: by whom, when, what it was, and what the table says."""
    with _control(ctx) as (control, _channel):
        table = control.live()
        rows = list(_logged(control) if of_log else _set(table, control.stored().queues))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    if not rows:
        ctx.obj.echo("nothing is set: the queue table holds for every queue")
        return
    names = [name for name in rows[0] if name not in ("queue", "at_ms")]
    columns = [Column(name, [shown(row[name]) for row in rows], is_text=True) for name in names]
    columns.append(Column("at", [_clock(row["at_ms"]) for row in rows], is_text=True))
    first = Column("queue", [row["queue"] for row in rows], is_text=True)
    for line in lines(first, columns, [], width=max(terminal_width(), 100)):
        ctx.obj.echo(line)


def _set(table: LiveTable, queues: Mapping[str, QueueSettings]) -> Iterator[dict[str, Any]]:
    for queue, fields in sorted(queues.items()):
        for name, one in fields.items():
            yield {
                "queue": queue,
                "field": name,
                "value": one.value,
                "table": getattr(table.of_table(queue), name, None),
                "was": one.before,
                "by": one.by,
                "at_ms": one.at_ms,
            }


def _logged(control: QueueControl) -> Iterator[dict[str, Any]]:
    for entry in control.log():
        row = asdict(entry)
        yield {"queue": row["queue"], "field": row["field"], "value": row["value"]} | {
            "was": row["before"],
            "by": row["by"],
            "at_ms": row["at_ms"],
        }


@contextmanager
def _control(ctx: click.Context) -> Iterator[tuple[QueueControl, Any]]:
    try:
        with engine_channel(ctx.obj.app) as channel:
            yield QueueControl(ctx.obj.app, channel), channel
    except SettingRefused as error:
        raise click.UsageError(str(error)) from error


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(
            f"expected FIELD=VALUE, such as prefetch=16, got {text!r}; fields are "
            + ", ".join(SETTABLE)
        )
    return name.strip(), value_of(value)


def value_of(text: str) -> Any:
    """Return what a value means on the command line.

    >>> [value_of(text) for text in ("16", "0.5", "true", "50/s", "none", "")]
    [16, 0.5, True, '50/s', None, None]
    """
    text = text.strip()
    words = {"": None, "none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _workers(count: int) -> str:
    if not count:
        return "no live worker consumes it now"
    return f"{count} live worker{'' if count == 1 else 's'} told"


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
