"""Which dead letters are meant, what they have in common, and the message that runs one again."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routing.errors import NotEditable
from routing.message.codec import raw_of
from routing.message.gate import with_mark
from routing.message.letter import FIRST, Letter, message_in, table_of

#: What a replay sets in the headers of a message.
_REPLAY_HEADERS = ("replayed", "retries", "eta", "expires", FIRST)


#: What the engine's scripts write at the end of a payload, before its last brace.
_STAMP = re.compile(rb',"celeriac":\{[^{}]*\}')


_STAMP_BEGINS = b',"celeriac":{'


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which letters are meant: those that fit every field that is set.

    Task and exception may be globs, and an exception's module may be left out. `since_ms` and
    `until_ms` bound when a letter died.
    """

    tasks: Sequence[str] = ()
    exceptions: Sequence[str] = ()
    fingerprints: Sequence[str] = ()
    reasons: Sequence[str] = ()
    ids: Sequence[str] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    def __call__(self, letter: Letter) -> bool:
        """Return whether a letter is meant."""
        short = letter.exception.rpartition(".")[2]
        return (
            _fits(self.tasks, letter.task)
            and (_fits(self.exceptions, letter.exception) or _fits(self.exceptions, short))
            and _fits(self.fingerprints, letter.fingerprint)
            and _fits(self.reasons, letter.reason)
            and _fits(self.ids, letter.id)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms <= self.until_ms)
        )


@dataclass(slots=True)
class LetterGroup:
    """Letters that probably have one cause."""

    queue: str
    task: str
    reason: str
    exception: str
    fingerprint: str
    #: Message and id of the newest.
    message: str = ""
    id: str = ""
    count: int = 0
    first_at_ms: int = field(default=0)
    last_at_ms: int = field(default=0)

    def add(self, letter: Letter) -> None:
        """Count one more; of letters of one moment the first one counts as the newest."""
        if not self.count or letter.at_ms > self.last_at_ms:
            self.last_at_ms, self.message, self.id = letter.at_ms, letter.message, letter.id
        self.first_at_ms = min(self.first_at_ms or letter.at_ms, letter.at_ms)
        self.count += 1

    def as_json(self) -> dict[str, Any]:
        """Return the fields under their names."""
        return {name: getattr(self, name) for name in self.__slots__}


def grouped(letters: Iterable[Letter]) -> list[LetterGroup]:
    """Return the groups of letters, the biggest first."""
    groups: dict[tuple[str, ...], LetterGroup] = {}
    for letter in letters:
        key = (letter.queue, letter.task, letter.reason, letter.exception, letter.fingerprint)
        groups.setdefault(key, LetterGroup(*key)).add(letter)
    return sorted(groups.values(), key=lambda group: -group.count)


def revived(
    letter: Letter,
    *,
    queue: str,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the message that runs a letter's work again in a queue.

    Its id stays. It has all of its retries again, and neither a time to start nor to expire, which
    have passed; the header ``replayed`` counts, and `FIRST` keeps when it was first sent.

    Arguments:
        letter: the letter.
        queue: the queue that it goes to.
        args: positional arguments in the place of its own.
        kwargs: keyword arguments, likewise.

    Raises:
        NotEditable: it is to get other arguments, and its own cannot be read.
    """
    message = message_in(letter.payload)
    if args is not None or kwargs is not None:
        _edit(message, args, kwargs)
    if (raw := raw_of(message)) is not None:
        return raw
    if not message:
        return letter.payload
    gate = table_of(message.pop("celeriac", None)).get("gate")
    headers = table_of(message.get("headers"))
    headers.update(replayed=letter.replayed + 1, retries=0, eta=None, expires=None)
    headers[FIRST] = letter.first_ms
    if queue != letter.queue:
        table_of(table_of(message.get("properties")).get("delivery_info"))["routing_key"] = queue
    try:
        return with_mark(json.dumps(message), gate).encode()
    except RecursionError:
        if args is not None or kwargs is not None:
            raise NotEditable("it is nested too deeply to be edited") from None
        return letter.payload  # what can be read but not written goes as it is


def contents_of(payload: bytes) -> str:
    """Return what tells a message without an id from others, also when it dies again.

    It is alike for messages that carry the same, which nothing tells apart.
    """
    message = message_in(payload)
    if (raw := raw_of(message)) is not None:
        return contents_of(raw)
    for name in ("celeriac", "properties"):
        message.pop(name, None)
    for name in _REPLAY_HEADERS:
        table_of(message.get("headers")).pop(name, None)
    try:
        kept = json.dumps(message, sort_keys=True).encode() if message else b""
    except RecursionError:
        kept = b""
    return hashlib.sha1(kept or _unstamped(payload), usedforsecurity=False).hexdigest()


def _edit(
    message: dict[str, Any], args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> None:
    headers = table_of(message.get("headers"))
    if message.get("content-type") != "application/json" or headers.get("compression"):
        raise NotEditable("only arguments in plain JSON can be edited")
    try:
        old_args, old_kwargs, embed = json.loads(base64.b64decode(message["body"]))
        args = old_args if args is None else args
        kwargs = old_kwargs if kwargs is None else kwargs
        body = json.dumps([args, kwargs, embed])
        shown = {"argsrepr": repr(tuple(args)), "kwargsrepr": repr(kwargs)}
    except RecursionError:
        # Without its cause, which is a thousand lines about nothing.
        raise NotEditable("its arguments are nested too deeply to be edited") from None
    except (ValueError, KeyError, TypeError) as error:
        raise NotEditable(f"its arguments cannot be read: {error}") from error
    message["body"] = base64.b64encode(body.encode()).decode("ascii")
    headers.update(shown)


def _fits(wanted: Sequence[str], value: str) -> bool:
    # The same payload fits too: an id may look like a glob that does not fit itself.
    return not wanted or any(
        value == pattern or fnmatch.fnmatchcase(value, pattern) for pattern in wanted
    )


def _unstamped(payload: bytes) -> bytes:
    """Return a malformed payload without the stamps of its deliveries, one for each."""
    payload = payload.rstrip()
    if not payload.endswith(b"}"):
        return payload
    end = len(payload) - 1
    while (start := payload.rfind(_STAMP_BEGINS, 0, end)) >= 0 and _STAMP.fullmatch(
        payload, start, end
    ):
        end = start
    return payload[:end] + b"}"
