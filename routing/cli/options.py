"""What options of the commands are given: moments, and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any, TypeAlias, get_args

import click
from celery.bin.base import CeleryOption

from routing.cli.broker import engine_channel, table_of
from routing.deadletters.letter import Filter
from routing.message.evidence import Reason
from routing.message.letter import Letter
from routing.redis.letters import AT_MOST, StoredLetters
from routing.topology.problems import close_to

#: Takes the server's clock and returns a moment, both in milliseconds.
Moment: TypeAlias = Callable[[int], int]

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def when(text: str) -> Moment:
    """Return the moment that a value names: ``2h`` or ``3d`` ago, or an ISO 8601 date and time.

    Without a zone it is local.

    >>> when("90s")(100_000)
    10000
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip()):
        span_ms = int(float(found[1]) * _SECONDS[found[2]] * 1000)
        return lambda now_ms: now_ms - span_ms
    try:
        at_ms = int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise click.BadParameter(
            f"expected a span such as 2h, or a time as 2026-01-31T12:00, got {text!r}"
        ) from None
    return lambda _: at_ms


def json_list(text: str) -> list[Any]:
    """Return the JSON list in a value."""
    value = _json(text)
    if not isinstance(value, list):
        raise click.BadParameter(f"expected a JSON list, got {text}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a value."""
    value = _json(text)
    if not isinstance(value, dict):
        raise click.BadParameter(f"expected a JSON object, got {text}")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{text[:200]!r} is not JSON: {error}") from None


_GROUP = "Dead Letter Options"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The letters that a command's filters mean."""

    stored_letters: StoredLetters
    queues: list[str]
    wanted: Filter
    now_ms: int

    def newest(self) -> Iterator[Letter]:
        """Yield them, the newest of all queues first."""
        return filter(self.wanted, self.stored_letters.newest_of(self.queues))

    def oldest(self) -> Iterator[Letter]:
        """Yield them as a replay takes them: the oldest of each queue first."""
        for queue in self.queues:
            walk = self.stored_letters.walk(queue, self.wanted)
            while letters := walk.next(AT_MOST):
                yield from letters


@contextmanager
def choose(
    ctx: click.Context,
    *,
    queues: Sequence[str] = (),
    since: Moment | None = None,
    until: Moment | None = None,
    **fields: Sequence[str],
) -> Iterator[Chosen]:
    """Open what the values of a command's filters mean, for the time of a ``with`` block."""
    for name in queues:
        check_queue(ctx, name)
    with engine_channel(ctx.obj.app) as channel:
        stored_letters = StoredLetters(channel.plain_client, channel.commands)
        now_ms = stored_letters.now_ms()
        known = {name: tuple(fields[name]) for name in fields if name in Filter.__slots__}
        wanted = Filter(
            since_ms=since(now_ms) if since else None,
            until_ms=until(now_ms) if until else None,
            **known,
        )
        every = list(table_of(ctx.obj.app).queues)
        yield Chosen(stored_letters, list(queues) or every, wanted, now_ms)


def check_queue(ctx: click.Context, name: str) -> None:
    """Raise click.BadParameter unless the app's table has this queue."""
    known = list(table_of(ctx.obj.app).queues)
    if name not in known:
        meant = close_to(name, known)
        hint = f", did you mean {meant!r}?" if meant else f"; it has {', '.join(known)}"
        raise click.BadParameter(f"{name!r} is no queue of the table{hint}")


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Return a decorator for an option of these commands."""
    return click.option(*names, cls=CeleryOption, help_group=_GROUP, **settings)


def _names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[str]:
    names = (name.strip() for value in values for name in value.split(","))
    return list(dict.fromkeys(name.removesuffix(".dead") for name in names))


_FILTERS = (
    option(
        "-Q",
        "--queue",
        "queues",
        multiple=True,
        callback=_names,
        help="Of this queue, or comma separated queues. May be repeated.",
    ),
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
JSON = option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
ALL = option("--all", "all_of_them", is_flag=True, help="Without any filter: all dead letters.")
DRY_RUN = option("--dry-run", is_flag=True, help="Only say which ones it would be.")


def filtered(command: Any) -> Any:
    """Give a command the options that say which letters are meant."""
    return reduce(lambda decorated, add: add(decorated), reversed(_FILTERS), command)
