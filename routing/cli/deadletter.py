"""``celery deadletter``: look at what will not be tried again, run it again, or drop it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from routing.cli.broker import Unavailable
from routing.cli.options import (
    ALL,
    DRY_RUN,
    JSON,
    Chosen,
    check_queue,
    choose,
    filtered,
    json_list,
    json_object,
    option,
)
from routing.cli.output import (
    count_of,
    full_text,
    groups_text,
    handle_of,
    letter_lines,
    terminal_width,
)
from routing.deadletters.letter import Filter, grouped
from routing.deadletters.replay import Plan, Replay, Replayed
from routing.errors import NotEditable
from routing.message.letter import Letter
from routing.redis.letters import AT_MOST, Move

#: Exit status of a replay that stopped because messages died again.
STOPPED = 1

#: Exit status when no letter has the ids that were given.
NOTHING = 1


@click.group(name="deadletter")
@click.pass_context
@handle_preload_options
def deadletter(ctx: click.Context) -> None:
    """Look at dead letters, run them again, or drop them.

    A message that will not be tried again is kept in the queue <queue>.dead, with the reason.
    """


@deadletter.command(name="list", cls=CeleryCommand)
@filtered
@option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Show so many.")
@JSON
@click.pass_context
@handle_preload_options
def list_(ctx: click.Context, limit: int, as_json: bool, **filters: Any) -> None:
    """Show dead letters, the newest first."""
    with choose(ctx, **filters) as chosen:
        letters, is_empty = chosen.newest(), True
        for letter in islice(letters, limit):
            is_empty = False
            if as_json:
                click.echo(json.dumps(letter.as_json()))
            else:
                lines = letter_lines(letter, now_ms=chosen.now_ms, width=terminal_width())
                click.echo("\n".join(lines))
        if is_empty and not as_json:
            click.echo("no dead letters")
        _tell_rest(ctx, letters)


@deadletter.command(cls=CeleryCommand)
@filtered
@JSON
@click.pass_context
@handle_preload_options
def groups(ctx: click.Context, as_json: bool, **filters: Any) -> None:
    """Count dead letters by what probably has one cause, the most frequent first."""
    with choose(ctx, **filters) as chosen:
        found = grouped(chosen.newest())
    if as_json:
        for group in found:
            click.echo(json.dumps(group.as_json()))
    elif found:
        click.echo(groups_text(found, now_ms=chosen.now_ms, width=terminal_width()))
    else:
        click.echo("no dead letters")


@deadletter.command(cls=CeleryCommand)
@click.argument("task_id", required=False)
@filtered
@option("--limit", default=10, show_default=True, type=click.IntRange(min=1), help="Show so many.")
@option("--raw", is_flag=True, help="Print the message as the broker holds it.")
@JSON
@click.pass_context
@handle_preload_options
def show(
    ctx: click.Context,
    task_id: str | None,
    limit: int,
    raw: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Show everything that is known about one dead letter, or about those that fit the filters.

    A letter without an id is found by its --fingerprint.
    """
    if task_id is not None:
        filters["ids"] = (*filters["ids"], task_id)
    if not _has_filter(filters):
        raise click.UsageError("say which one: its id, or a filter such as --fingerprint")
    with choose(ctx, **filters) as chosen:
        letters, shown = chosen.newest(), 0
        for shown, letter in enumerate(islice(letters, limit), start=1):
            if raw:
                click.echo(letter.payload)
            elif as_json:
                click.echo(json.dumps(letter.as_json()))
            else:
                space = "\n" if shown > 1 else ""
                click.echo(space + full_text(letter, now_ms=chosen.now_ms))
        _tell_rest(ctx, letters)
    if not shown:
        raise click.ClickException(_nothing(ctx, filters["ids"]))


@deadletter.command(cls=CeleryCommand)
@filtered
@ALL
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
@DRY_RUN
@JSON
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
        check_queue(ctx, to)
    plan = Plan(rate=rate, most=most, stop_at=stop_at / 100, to=to, args=args, kwargs=kwargs)
    with choose(ctx, **filters) as chosen:
        if args is not None or kwargs is not None:
            _need_one(ctx, chosen)
        if dry_run:
            _tell(ctx, chosen, "replay", as_json=as_json, most=most)
            return
        run = Replay(
            chosen.stored_letters, plan, forget=_forgetting(ctx.obj.app), report=_progress(as_json)
        )
        try:
            done = run.run(chosen.queues, chosen.wanted)
        except NotEditable as error:
            raise click.ClickException(f"{error}; the letter stays where it is") from error
    _conclude(ctx, done, as_json=as_json)
    _check_found(ctx, done.count, filters["ids"])


@deadletter.command(cls=CeleryCommand)
@filtered
@ALL
@DRY_RUN
@JSON
@click.pass_context
@handle_preload_options
def purge(
    ctx: click.Context, all_of_them: bool, dry_run: bool, as_json: bool, **filters: Any
) -> None:
    """Drop dead letters for good; the ledger counts them."""
    _need_filter(filters, all_of_them)
    with choose(ctx, **filters) as chosen:
        if dry_run:
            _tell(ctx, chosen, "purge", as_json=as_json)
            return
        dropped = 0
        for queue in chosen.queues:
            walk = chosen.stored_letters.walk(queue, chosen.wanted)
            while letters := walk.next(AT_MOST):
                gone = len(
                    chosen.stored_letters.move([Move(letter) for letter in letters], to=queue)
                )
                walk.taken(gone)
                dropped += gone
    click.echo(json.dumps({"purged": dropped}) if as_json else f"purged {count_of(dropped)}")
    _check_found(ctx, dropped, filters["ids"])


def _need_filter(filters: dict[str, Any], all_of_them: bool) -> None:
    if not all_of_them and not _has_filter(filters):
        raise click.UsageError("say which ones, with a filter such as --queue, or --all")


def _has_filter(filters: dict[str, Any]) -> bool:
    return any(filters.get(name) for name in (*Filter.__slots__, "queues", "since", "until"))


def _need_one(ctx: click.Context, chosen: Chosen) -> None:
    found = list(islice(chosen.newest(), 2))
    if not found and chosen.wanted.ids:
        raise click.ClickException(_nothing(ctx, chosen.wanted.ids))
    if len(found) != 1:
        number = "none" if not found else "several"
        raise click.UsageError(
            f"--args and --kwargs are for one message, and {number} fit: name it by --id"
        )


def _tell(
    ctx: click.Context,
    chosen: Chosen,
    verb: str,
    *,
    as_json: bool,
    most: int | None = None,
) -> None:
    """Say which letters it would be: with a limit, those that it would come to first."""
    found = grouped(chosen.newest() if most is None else islice(chosen.oldest(), most))
    count = sum(group.count for group in found)
    if as_json:
        click.echo(json.dumps({f"would_{verb}": count}))
    else:
        click.echo(f"would {verb} {count_of(count)}{':' if found else ''}")
        if found:
            click.echo(groups_text(found, now_ms=chosen.now_ms, width=terminal_width()))
    _check_found(ctx, count, chosen.wanted.ids)


def _tell_rest(ctx: click.Context, letters: Iterable[Letter]) -> None:
    if rest := sum(1 for _ in letters):
        more = f"and {count_of(rest, more=True)}; show more with --limit"
        click.echo(f"{more}, or count them: {_command(ctx, 'groups')}", err=True)


def _check_found(ctx: click.Context, count: int, ids: Sequence[str]) -> None:
    if not count and ids:
        click.echo(_nothing(ctx, ids), err=True)
        ctx.exit(NOTHING)


def _nothing(ctx: click.Context, ids: Sequence[str]) -> str:
    what = f"has the id {' or '.join(ids)}" if ids else "fits"
    return f"no dead letter {what}; look at all: {_command(ctx, 'list')}"


def _command(ctx: click.Context, verb: str) -> str:
    """Return the command line of another of these commands, for the app of this one."""
    app = ctx.find_root().params.get("app")
    of = f"-A {app} " if isinstance(app, str) else ""
    return f"celery {of}deadletter {verb}"


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
        last = next(reversed(done.died.values()))
        click.echo(f"look at it: {_command(ctx, 'show')} {handle_of(last)}", err=True)
        ctx.exit(STOPPED)
