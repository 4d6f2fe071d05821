"""Looks at the signatures that a call carries along: links, steps of a chain, bodies of chords.

A worker sends them, long after their caller has gone: a level that nobody serves, or a misspelt
option, would end work that has gone well so far. So they are refused where the first message is
sent, as far as the table of this app can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from routing.message.exemption import is_exempt
from routing.publish.router import Router

#: Where signatures stand in a message, in the options of a signature, and in its arguments.
_IN_A_MESSAGE = ("callbacks", "errbacks", "chain", "chord")
_IN_OPTIONS = ("link", "link_error", "chain", "chord")
_IN_ARGUMENTS = ("tasks", "header", "body")

#: Names of tasks that only hold others.
_CANVAS = frozenset(("celery.group", "celery.chain", "celery.chord"))


def check_carried(router: Router, message: Any) -> None:
    """Refuse what the signatures in a task message ask for and nobody can give.

    Not where the message follows from work that was accepted: it would be lost.

    Raises:
        UnknownOption: an option is misspelt.
        UnknownLevel: no queue serves a level.
        QueueNotFound: a task of this app is to go to a queue that does not exist.
    """
    body = message.body
    embed = body[2] if isinstance(body, tuple) and len(body) == 3 else body
    if not isinstance(embed, Mapping):
        return
    carried = [value for name in _IN_A_MESSAGE if (value := embed.get(name))]
    if carried and not is_exempt(message.headers):
        check_signatures(router, *carried)


def check_signatures(router: Router, *values: Any) -> None:
    """Refuse the same of signatures, and of those within; each value is one, a list, or None."""
    for signature in _signatures(values):
        options = signature.get("options") or {}
        kwargs = signature.get("kwargs") or {}
        name = signature.get("task")
        if isinstance(name, str):
            router.check_later(options, name)
        check_signatures(router, *(options.get(where) for where in _IN_OPTIONS))
        if name in _CANVAS:
            check_signatures(router, *(kwargs.get(where) for where in _IN_ARGUMENTS))


def _signatures(values: Any) -> Iterator[Mapping[str, Any]]:
    for value in values:
        if isinstance(value, Mapping):
            yield value
        elif isinstance(value, (list, tuple)):  # a generator of signatures stays unread
            yield from _signatures(value)
