"""A payload prepared once, into which many items are written.

Between the messages of one bulk call only the ids, the delivery tag, the arguments and their
representation differ. The payload of one message, made by Celery and kombu, is cut at these places;
an item fills them. The result is byte for byte what ``apply_async`` would have published (a test
compares them).
"""

from __future__ import annotations

import os
from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from json import encoder
from json.encoder import encode_basestring_ascii
from typing import Any
from uuid import uuid4

import kombu.utils.json as kombu_json
from celery.utils.saferepr import saferepr
from kombu.serialization import registry

from routing import upstream
from routing.message.gate import take_mark, with_mark
from routing.publish.capture import Capture, Outgoing
from routing.publish.gates import Marker

#: Writes the serialized arguments of one item, as a quoted JSON string.
BodyWriter = Callable[[Sequence[Any], Mapping[str, Any]], str]

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_SCALARS = frozenset((int, float, bool, type(None), str))


def _encoder() -> Callable[[Any], str]:
    """Return kombu's JSON encoder, made once: ``encode`` makes the same C encoder for each call."""
    stock = kombu_json.JSONEncoder()
    make = getattr(encoder, "c_make_encoder", None)
    if make is None:
        return lambda value: str(stock.encode(value))
    write = make(
        None,  # no marks against circles, which end as RecursionError
        stock.default,
        encode_basestring_ascii,
        stock.indent,
        stock.key_separator,
        stock.item_separator,
        stock.sort_keys,
        stock.skipkeys,
        stock.allow_nan,
    )
    join = "".join
    return lambda value: join(write(value, 0))


_encode = _encoder()


def new_ids(count: int) -> list[str]:
    """Return random UUIDs (version 4) as strings, several times faster than one by one."""
    digits = os.urandom(16 * count).hex()
    return [
        f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:]}"
        for h in (digits[i : i + 32] for i in range(0, len(digits), 32))
    ]


class Representation:
    """Celery's ``argsrepr`` and ``kwargsrepr``, quick for ordinary small arguments.

    Where `repr` provably gives the same string, it is taken: builtin scalars and containers, less
    deep and shorter than what ``saferepr`` cuts, without quotes or escapes inside strings.
    """

    def __init__(self, *, max_length: int, max_levels: int) -> None:
        self._max_length = max_length
        self._max_levels = max_levels

    def __call__(self, value: Any) -> str:
        if _is_plain(value, self._max_levels):
            text = repr(value)
            if len(text) < self._max_length and "\\" not in text and '"' not in text:
                return text
        return str(saferepr(value, self._max_length, maxlevels=self._max_levels))


def _is_plain(value: Any, levels: int) -> bool:
    kind = type(value)
    if kind in _SCALARS:
        return True
    if levels < 1:
        return False
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str or not (
                type(inner) in _SCALARS or _is_plain(inner, levels - 1)
            ):
                return False
        return True
    if kind is list or kind is tuple:
        for inner in value:
            if type(inner) not in _SCALARS and not _is_plain(inner, levels - 1):
                return False
        return True
    return False


class Envelope:
    """The payload of one message with places for the id, the arguments and the delivery tag."""

    def __init__(
        self,
        capture: Capture,
        outgoing: Outgoing,
        *,
        task_id: str,
        args_repr: Representation,
        kwargs_repr: Representation,
        keep_reprs: frozenset[str] = frozenset(),
        mark: Marker | None = None,
    ) -> None:
        """Cut a message.

        Arguments:
            capture: the producer that captured it.
            outgoing: a message that Celery made for placeholder arguments.
            task_id: its id, which occurs nowhere else.
            args_repr: writes the positional arguments for people.
            kwargs_repr: writes the keyword arguments for people.
            keep_reprs: which of argsrepr and kwargsrepr the caller has given for all items.
            mark: says which gate an item is for, where something limits them.
        """
        channel = capture.real.channel
        prepared = capture.prepare(outgoing)
        message, self._mark = prepared.message, mark
        take_mark(message)  # each item has its own
        self.queue = prepared.routing_key
        self.eta: datetime | None = channel.take_eta(self.queue, message)
        self.exchange = prepared.exchange
        self.declare = prepared.declare
        self.headers = message["headers"]
        self.priority: int = upstream.PRIORITY.of(channel)(message, reverse=False)
        self._write = _body_writer(capture, outgoing, channel)
        self._args_repr, self._kwargs_repr = args_repr, kwargs_repr
        upstream.AUGMENT.of(channel)(message, prepared.exchange, prepared.routing_key)
        marks = {name: f'"{uuid4().hex}"' for name in ("body", "argsrepr", "kwargsrepr", "tag")}
        message["body"] = marks["body"][1:-1]
        message["properties"]["delivery_tag"] = marks["tag"][1:-1]
        for name in {"argsrepr", "kwargsrepr"} - keep_reprs:
            message["headers"][name] = marks[name][1:-1]
        self._pieces, places = _cut(kombu_json.dumps(message), {**marks, "id": task_id})
        (self._body_at,), (self._tag_at,) = places["body"], places["tag"]
        self._args_at, self._kwargs_at = places["argsrepr"], places["kwargsrepr"]
        self._ids_at = places["id"]
        self._no_kwargs = encode_basestring_ascii(kwargs_repr({}))

    def fill(self, task_id: str, tag: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return the payload of one item.

        Raises:
            Exception: what the serializer raises when it cannot write the arguments.
        """
        pieces = self._pieces
        pieces[self._body_at] = self._write(args, kwargs)
        pieces[self._tag_at] = f'"{tag}"'
        for at in self._ids_at:
            pieces[at] = task_id
        for at in self._args_at:
            pieces[at] = encode_basestring_ascii(self._args_repr(args))
        for at in self._kwargs_at:
            pieces[at] = (
                encode_basestring_ascii(self._kwargs_repr(kwargs)) if kwargs else self._no_kwargs
            )
        payload = "".join(pieces)
        return with_mark(payload, self._mark(args, kwargs)) if self._mark else payload


def _cut(text: str, marks: Mapping[str, str]) -> tuple[list[str], dict[str, list[int]]]:
    """Return the pieces of a payload between and at its marks, and where each mark stands."""
    pieces = [text]
    for mark in marks.values():
        pieces = [part for piece in pieces for part in _split(piece, mark)]
    return pieces, {
        name: [at for at, piece in enumerate(pieces) if piece == mark]
        for name, mark in marks.items()
    }


def _split(text: str, mark: str) -> list[str]:
    first, *rest = text.split(mark)
    return [first, *(part for after in rest for part in (mark, after))]


def _body_writer(capture: Capture, outgoing: Outgoing, channel: Any) -> BodyWriter:
    embed = outgoing.body[2]
    serializer = outgoing.options.get("serializer") or capture.serializer
    compression = outgoing.options.get("compression") or capture.compression
    if serializer == "json" and not compression and _is_stock(channel):
        return _json_writer(_encode(embed))

    def write(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        body, _, _ = upstream.PREPARE.of(capture)(
            (args, kwargs, embed), serializer, None, None, compression, {}
        )
        text, _ = channel.encode_body(body, channel.body_encoding)
        return _encode(text)

    return write


def _is_stock(channel: Any) -> bool:
    """Whether JSON and the body's encoding are kombu's own."""
    stock = upstream.JSON_ENCODERS.of(registry)["json"].encoder is kombu_json.dumps
    return stock and channel.body_encoding == "base64"


def _json_writer(embed: str) -> BodyWriter:
    end = f", {embed}]"

    def write(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        inner = _encode(kwargs) if kwargs else "{}"
        body = b2a_base64(f"[{_encode(args)}, {inner}{end}".encode(), newline=False)
        return f'"{body.decode("ascii")}"'

    return write
