"""``celery doctor``: what is wrong with a live platform, and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options

from routing.cli.broker import Unavailable, engine_channel
from routing.doctor.checks import examine
from routing.doctor.finding import Finding, Level
from routing.doctor.survey import look

#: Seconds to wait for answers: a worker between two tasks of the solo pool needs a while.
TIMEOUT_SECONDS = 2.0

COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "error": "red"}

#: Exit statuses for scripts.
WARNED, FAILED = 1, 2


@click.command(cls=CeleryCommand)
@click.option(
    "--json",
    "as_json",
    cls=CeleryOption,
    is_flag=True,
    help_group="Doctor Options",
    help="Print all findings as one JSON object.",
)
@click.option(
    "--strict",
    cls=CeleryOption,
    is_flag=True,
    help_group="Doctor Options",
    help=f"Exit with {WARNED} when there are warnings.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    cls=CeleryOption,
    type=click.FloatRange(min=0.1),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help_group="Doctor Options",
    help="Seconds to wait for the answers of workers.",
)
@click.pass_context
@handle_preload_options
def doctor(
    ctx: click.Context, as_json: bool, strict: bool, timeout_seconds: float, **_: object
) -> None:
    """Examine the broker, the workers and the ledger, and say what to do.

    Nothing is changed. The exit status is 0 when there is no error, 2 when there is one, and with
    --strict 1 when there are only warnings; 69 when the broker does not answer.
    """
    app = ctx.obj.app
    try:
        with engine_channel(app) as channel:
            findings = examine(look(app, channel, timeout_seconds=timeout_seconds))
    except Unavailable as error:
        if not as_json:
            raise
        advice = "start it, or correct broker_url"
        _print([Finding(check="server", level="error", what=error.message, advice=advice)])
        ctx.exit(error.exit_code)
    levels = Counter(finding.level for finding in findings)
    if as_json:
        _print(findings)
    else:
        _show(ctx, findings, levels)
    if levels["error"]:
        ctx.exit(FAILED)
    if strict and levels["warn"]:
        ctx.exit(WARNED)


def _print(findings: Sequence[Finding]) -> None:
    levels = Counter(finding.level for finding in findings)
    counts = {level: levels[level] for level in COLOURS}
    click.echo(json.dumps({**counts, "findings": [asdict(one) for one in findings]}))


def _show(ctx: click.Context, findings: Sequence[Finding], levels: Counter[Level]) -> None:
    obj, app = ctx.obj, ctx.find_root().params.get("app")
    width = max(len(finding.check) for finding in findings)
    for one in findings:
        level = obj.style(f"{one.level:<5}", fg=COLOURS[one.level])
        obj.echo(f"{level}  {one.check:<{width}}  {one.what}")
        if one.advice:
            advice = one.advice.replace("<app>", app) if isinstance(app, str) else one.advice
            obj.echo(f"{'':<5}  {'':<{width}}  -> {advice}")
    obj.echo(f"\n{_plural(levels['error'], 'error')}, {_plural(levels['warn'], 'warning')}")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
