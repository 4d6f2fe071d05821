"""``celery deadletter``: look at what will not be tried again, run it again, or drop it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import Any, get_args

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options

from routing.commands.letters import count_of, full_text, groups_text, letter_lines
from routing.commands.session import Unavailable, engine_channel, table_of
from routing.commands.table import terminal_width
from routing.commands.values import Moment, json_list, json_object, when
from routing.deadletter import Filter, Letter, NotEditable, grouped
from routing.evidence import Reason
from routing.problems import close_to
from routing.redis.graves import AT_MOST, Graves, Move
from routing.replay import Plan, Replay, Replayed

_GROUP = "Dead Letter Options"

#: Exit status of a replay that stopped because messages died again.
STOPPED = 1


@dataclass(frozen=True, slots=True)
class Chosen:
    """The letters that a command's filters mean."""

    graves: Graves
    queues: list[str]
    wanted: Filter
    now_ms: int

    def newest(self) -> Iterator[Letter]:
        """Yield them, the newest of each queue first."""
        for queue in self.queues:
            yield from filter(self.wanted, self.graves.newest(queue))


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Return a decorator for an option of these commands."""
    return click.option(*names, cls=CeleryOption, help_group=_GROUP, **settings)


_FILTERS = (
    option("-Q", "--queue", "queues", multiple=True, help="Of this queue. May be repeated."),
    option("--task", "tasks", multiple=True, help="Of this task, or glob such as 'shop.*'."),
    option("--exception", "exceptions", multiple=True, help="With this exception, or glob."),
    option("--fingerprint", "fingerprints", multiple=True, help="Of this group."),
    option(
        "--reason",
        "reasons",
        multiple=True,
        type=click.Choice(get_args(Reason)),
        help="Dead for this reason.",
    ),
    option("--id", "ids", multiple=True, help="With this task id."),
    option("--since", type=when, metavar="WHEN", help="Dead since: 2h, 3d, or 2026-01-31T12:00."),
    option("--until", type=when, metavar="WHEN", help="Dead until."),
)
_JSON = option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
_ALL = option("--all", "all_of_them", is_flag=True, help="Without any filter: all dead letters.")
_DRY_RUN = option("--dry-run", is_flag=True, help="Only say which ones it would be.")


def _filters(command: Any) -> Any:
    return reduce(lambda decorated, add: add(decorated), reversed(_FILTERS), command)


@click.group(name="deadletter")
@click.pass_context
@handle_preload_options
def deadletter(ctx: click.Context) -> None:
    """Look at dead letters, run them again, or drop them.

    A message that will not be tried again is kept in the queue <queue>.dead, with the reason.
    """


@deadletter.command(name="list", cls=CeleryCommand)
@_filters
@option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Show so many.")
@_JSON
@click.pass_context
@handle_preload_options
def list_(ctx: click.Context, limit: int, as_json: bool, **filters: Any) -> None:
    """Show dead letters, the newest first."""
    with _chosen(ctx, **filters) as chosen:
        letters = chosen.newest()
        for letter in islice(letters, limit):
            if as_json:
                click.echo(json.dumps(letter.as_json()))
            else:
                lines = letter_lines(letter, now_ms=chosen.now_ms, width=terminal_width())
                click.echo("\n".join(lines))
        if rest := sum(1 for _ in letters):
            click.echo(f"and {count_of(rest)} more; show more with --limit", err=True)


@deadletter.command(cls=CeleryCommand)
@_filters
@_JSON
@click.pass_context
@handle_preload_options
def groups(ctx: click.Context, as_json: bool, **filters: Any) -> None:
    """Count dead letters by what probably has one cause, the most frequent first."""
    with _chosen(ctx, **filters) as chosen:
        found = grouped(chosen.newest())
    if as_json:
        for group in found:
            click.echo(json.dumps(group.as_json()))
    elif found:
        click.echo(groups_text(found, now_ms=chosen.now_ms, width=terminal_width()))
    else:
        click.echo("no dead letters")


@deadletter.command(cls=CeleryCommand)
@click.argument("task_id")
@option("-Q", "--queue", "queues", multiple=True, help="Look only in this queue.")
@option("--raw", is_flag=True, help="Print the message as the broker holds it.")
@_JSON
@click.pass_context
@handle_preload_options
def show(
    ctx: click.Context, task_id: str, queues: Sequence[str], raw: bool, as_json: bool, **_: Any
) -> None:
    """Show everything that is known about one dead letter."""
    with _chosen(ctx, queues=queues, ids=(task_id,)) as chosen:
        letters = list(chosen.newest())
    if not letters:
        raise click.ClickException(f"no dead letter has the id {task_id}")
    for letter in letters:
        if raw:
            click.echo(letter.text)
        elif as_json:
            click.echo(json.dumps(letter.as_json()))
        else:
            click.echo(full_text(letter, now_ms=chosen.now_ms))


@deadletter.command(cls=CeleryCommand)
@_filters
@_ALL
@option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second.")
@option("--max", "most", type=click.IntRange(min=1), help="At most so many.")
@option(
    "--stop-at",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Stop when more than so many percent died again; 100 never stops.",
)
@option("--to", help="Into this queue instead of the one that each came from.")
@option(
    "--args", type=json_list, metavar="JSON", help="Other positional arguments, for one message."
)
@option(
    "--kwargs", type=json_object, metavar="JSON", help="Other keyword arguments, for one message."
)
@_DRY_RUN
@_JSON
@click.pass_context
@handle_preload_options
def replay(
    ctx: click.Context,
    all_of_them: bool,
    rate: float | None,
    most: int | None,
    stop_at: float,
    to: str | None,
    args: list[Any] | None,
    kwargs: dict[str, Any] | None,
    dry_run: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Run dead letters again, the oldest first, under their own ids.

    They go out in waves that grow: 10, 20, 40 and so on a second. When more than a tenth of them
    is dead again, the others stay, and the exit status is 1.
    """
    _need_filter(filters, all_of_them)
    if to is not None:
        _check_queue(ctx, to)
    plan = Plan(rate=rate, most=most, stop_at=stop_at / 100, to=to, args=args, kwargs=kwargs)
    with _chosen(ctx, **filters) as chosen:
        if args is not None or kwargs is not None:
            _need_one(chosen)
        if dry_run:
            _tell(ctx, chosen, "replay", as_json=as_json, most=most)
            return
        run = Replay(
            chosen.graves, plan, forget=_forgetting(ctx.obj.app), report=_progress(as_json)
        )
        try:
            done = run.run(chosen.queues, chosen.wanted)
        except NotEditable as error:
            raise click.ClickException(str(error)) from error
    _conclude(ctx, done, as_json=as_json)


@deadletter.command(cls=CeleryCommand)
@_filters
@_ALL
@_DRY_RUN
@_JSON
@click.pass_context
@handle_preload_options
def purge(
    ctx: click.Context, all_of_them: bool, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """Drop dead letters for good; the ledger counts them."""
    _need_filter(filters, all_of_them)
    with _chosen(ctx, **filters) as chosen:
        if dry_run:
            _tell(ctx, chosen, "purge", as_json=as_json)
            return
        dropped = 0
        for queue in chosen.queues:
            walk = chosen.graves.walk(queue, chosen.wanted)
            while letters := walk.next(AT_MOST):
                gone = len(chosen.graves.move([Move(letter) for letter in letters], to=queue))
                walk.taken(gone)
                dropped += gone
    click.echo(json.dumps({"purged": dropped}) if as_json else f"purged {count_of(dropped)}")


@contextmanager
def _chosen(
    ctx: click.Context,
    *,
    queues: Sequence[str] = (),
    since: Moment | None = None,
    until: Moment | None = None,
    **fields: Sequence[str],
) -> Iterator[Chosen]:
    names = [name.removesuffix(".dead") for name in queues]
    for name in names:
        _check_queue(ctx, name)
    with engine_channel(ctx.obj.app) as channel:
        graves = Graves(channel.plain_client, channel.verbs)
        now_ms = graves.now_ms()
        known = {name: tuple(fields[name]) for name in fields if name in Filter.__slots__}
        wanted = Filter(
            since_ms=since(now_ms) if since else None,
            until_ms=until(now_ms) if until else None,
            **known,
        )
        every = list(table_of(ctx.obj.app).queues)
        yield Chosen(graves, names or every, wanted, now_ms)


def _check_queue(ctx: click.Context, name: str) -> None:
    known = list(table_of(ctx.obj.app).queues)
    if name not in known:
        meant = close_to(name, known)
        hint = f", did you mean {meant!r}?" if meant else f"; it has {', '.join(known)}"
        raise click.BadParameter(f"{name!r} is no queue of the table{hint}")


def _need_filter(filters: dict[str, Any], all_of_them: bool) -> None:
    if not all_of_them and not any(filters.get(name) for name in (*Filter.__slots__, *_MORE)):
        raise click.UsageError("say which ones, with a filter such as --queue, or --all")


_MORE = ("queues", "since", "until")


def _need_one(chosen: Chosen) -> None:
    found = list(islice(chosen.newest(), 2))
    if len(found) != 1:
        number = "none" if not found else "several"
        raise click.UsageError(
            f"--args and --kwargs are for one message, and {number} fit: name it by --id"
        )


def _tell(
    ctx: click.Context, chosen: Chosen, verb: str, *, as_json: bool, most: int | None = None
) -> None:
    found = grouped(chosen.newest())
    count = sum(group.count for group in found)
    count = count if most is None else min(count, most)
    if as_json:
        click.echo(json.dumps({f"would_{verb}": count}))
        return
    click.echo(f"would {verb} {count_of(count)}{':' if found else ''}")
    if found:
        click.echo(groups_text(found, now_ms=chosen.now_ms, width=terminal_width()))


def _forgetting(app: Any) -> Callable[[str], None]:
    """Return what makes a task's result unknown again, so that whoever asks for it waits."""

    backend = app.backend

    def forget(task_id: str) -> None:
        try:
            backend.forget(task_id)
        except NotImplementedError:
            pass  # the app keeps no results
        except getattr(backend, "connection_errors", ()) as error:
            raise Unavailable(
                f"the result backend does not answer, so no more is replayed: {error}"
            ) from error

    return forget


def _progress(as_json: bool) -> Callable[[Replayed], None]:
    if as_json or not sys.stderr.isatty():
        return lambda _: None
    return lambda done: click.echo(
        f"\rreplayed {done.count:,}, died again {len(done.died):,} ", err=True, nl=False
    )


def _conclude(ctx: click.Context, done: Replayed, *, as_json: bool) -> None:
    if sys.stderr.isatty() and not as_json:
        click.echo(err=True)
    if as_json:
        click.echo(json.dumps(done.as_json()))
    else:
        died = f"{len(done.died):,} of them died again" if done.died else "none died again so far"
        again = f"; {died}" if done.count else ""
        click.echo(f"replayed {count_of(done.count)}{again}")
    if done.stopped:
        click.echo(f"stopped: {done.stopped}", err=True)
        ctx.exit(STOPPED)
