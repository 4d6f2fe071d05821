"""Decoding of messages: by orjson, except where its answer could differ from kombu's."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import orjson
from kombu.serialization import loads as kombu_loads
from kombu.utils import json as kombu_json

JSON = "application/json"

#: kombu's own types are marked by `__type__`; orjson turns integers beyond 64 bits into floats.
_KOMBU_ONLY = re.compile(rb'"__type__"|\d{19}')


def decode(text: bytes) -> Any:
    """Decode the text of a message as it is stored, without its body.

    >>> decode(b'{"headers": {"argsrepr": "caf\\\\udce9"}}')["headers"]["argsrepr"].isascii()
    False

    Raises:
        ValueError: it is no JSON, or no text.
        RecursionError: it is nested too deep.
    """
    if b'"__type__"' not in text:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # as for bodies
    return kombu_json.loads(text.decode())


def loads(
    body: Any,
    content_type: str | None,
    content_encoding: str | None,
    accept: Collection[str] | None,
) -> Any:
    """Decode a message body exactly as kombu does, faster where that is safe."""
    if (
        content_type == JSON
        and type(body) is bytes
        and (accept is None or JSON in accept)
        and _KOMBU_ONLY.search(body) is None
    ):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass  # NaN, lone surrogates, deep nesting; or broken, and then kombu says so
    return kombu_loads(body, content_type, content_encoding, accept=accept)
