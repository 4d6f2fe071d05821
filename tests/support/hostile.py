"""Messages that an attacker or a fool may send, each made to trip some code of a worker."""

from __future__ import annotations

import base64
import functools
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tests.support.messages import task_message

Text: TypeAlias = str | bytes
Named: TypeAlias = Iterator[tuple[str, Text]]

QUEUE = "default"

#: A value of each JSON type, and some that are of a right type and of no use.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "huge": 10**40,
    "fraction": -1.5,
    "empty text": "",
    "NUL": "a\x00b",
    "list": [1, "x"],
    "nested": [[["x"]]],
    "object": {"a": {"b": 1}},
    "objects": [{}],
}

HEADERS = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",
    "chord",
    "callbacks",
    "errbacks",
    "chain",
    "delivery_info",
    "redelivered",
]
PROPERTIES = [
    "correlation_id",
    "reply_to",
    "delivery_info",
    "priority",
    "body_encoding",
    "delivery_tag",
]
OUTER = [
    "body",
    "content-encoding",
    "content-type",
    "headers",
    "properties",
    "celeriac",
]
RESERVED = [
    "get",
    "update",
    "__class__",
    "__dict__",
    "headers",
    "args",
    "kwargs",
    "hostname",
    "is_eager",
    "called_directly",
    "children",
    "delivery_info",
    "properties",
    "request",
    "uuid",
    "id",
    "task",
]

DEEP = 100_000
BIG = 10_000_000


def valid(task_name: str = "basic.add", /, **headers: Any) -> dict[str, Any]:
    """Return a message that is as it should be, but for its headers."""
    text = task_message(task_name, (1, 1), queue=QUEUE, headers=headers)
    message: dict[str, Any] = json.loads(text)
    return message


def _body(text: Text) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@functools.cache
def _bomb() -> str:
    return _body(zlib.compress(b"\0" * 300_000_000, 1))


def headers() -> Named:
    """Yield messages with one header that is wrong or missing."""
    for field in HEADERS:
        message = valid()
        message["headers"].pop(field, None)
        yield f"no {field}", json.dumps(message)
        for name, value in VALUES.items():
            message["headers"][field] = value
            yield f"{field}: {name}", json.dumps(message)
    for name, value in VALUES.items():
        yield f"unknown task, id: {name}", json.dumps(valid("basic.nowhere", id=value))


def properties() -> Named:
    """Yield messages with another field that is wrong or missing."""
    for field in OUTER:
        yield f"no {field}", json.dumps({k: v for k, v in valid().items() if k != field})
        for name, value in VALUES.items():
            yield f"{field}: {name}", json.dumps(valid() | {field: value})
    for field in (*PROPERTIES, "routing_key"):
        for name, value in VALUES.items():
            message = valid()
            target = message["properties"]
            (target["delivery_info"] if field == "routing_key" else target)[field] = value
            yield f"{field}: {name}", json.dumps(message)


def bodies() -> Named:
    """Yield messages whose body is wrong."""
    for name, value in VALUES.items():
        for position, part in enumerate(("args", "kwargs", "embed")):
            content: list[Any] = [[1, 1], {}, None]
            content[position] = value
            yield f"{part}: {name}", json.dumps(valid() | {"body": _body(json.dumps(content))})
        for part in ("callbacks", "errbacks", "chain", "chord"):
            for task in ("basic.add", "basic.fail"):  # one that succeeds, one that does not
                content = [[1, 1], {}, {part: value}]
                message = valid(task) | {"body": _body(json.dumps(content))}
                yield f"{part} of {task}: {name}", json.dumps(message)
    for text in (
        "{{{",
        '"text"',
        "[[NaN,1],{},null]",
        f"[[{'9' * 5000},1],{{}},null]",
        '[["\\ud800","x"],{},null]',
        '[[{"__type__":"datetime","__value__":"x"},1],{},null]',
        b"\xff\xfe",
        b"\0",
    ):
        yield f"body {text[:20]!r}", json.dumps(valid() | {"body": _body(text)})
    yield "body that is no base64", json.dumps(valid() | {"body": "!!!"})


def names() -> Named:
    """Yield messages that name what Celery keeps in a request, where nobody expects it."""
    for field in RESERVED:
        for name, value in {"number": 5, "list": [1], "object": {"a": 1}}.items():
            yield f"header {field}: {name}", json.dumps(valid(**{field: value}))
            body = _body(json.dumps([[1, 1], {}, {field: value}]))
            yield f"embedded {field}: {name}", json.dumps(valid() | {"body": body})


def serializers() -> Named:
    """Yield messages that claim another serializer, encoding or compression."""
    for kind in ("x-python-serialize", "x-yaml", "x-msgpack", "data", "nothing"):
        yield kind, json.dumps(valid() | {"content-type": f"application/{kind}"})
    for kind in ("binary", "utf-16", "rot13", "nothing"):
        yield kind, json.dumps(valid() | {"content-encoding": kind})
    for kind in ("gzip", "zlib", "nothing"):
        yield kind, json.dumps(valid(compression=kind))


def sizes() -> Named:
    """Yield messages that are huge, or nested deeply."""
    for name, value in {"header": valid(big="x" * BIG), "task": valid("x" * BIG)}.items():
        yield f"10 MB {name}", json.dumps(value)
    yield "10 MB id", json.dumps(valid(id="x" * BIG))
    yield "10 MB body", json.dumps(valid() | {"body": _body(f'[["{"x" * BIG}","y"],{{}},null]')})
    yield "300 MB of zeros", json.dumps(valid(compression="gzip") | {"body": _bomb()})
    yield "many headers", json.dumps(valid(**{f"h{n}": n for n in range(100_000)}))
    for depth in (900, 1_020, DEEP):
        nest = "[" * depth + "]" * depth
        yield f"{depth} levels", nest
        yield f"{depth} levels in a header", json.dumps(valid(x="@")).replace('"@"', nest)
        yield f"{depth} levels in the id", json.dumps(valid(id="@")).replace('"@"', nest)
        for body in (nest, f"[[{nest},1],{{}},null]", f'[[1,1],{{}},{{"callbacks":{nest}}}]'):
            yield f"{depth} levels in {body[:6]}", json.dumps(valid() | {"body": _body(body)})


def times() -> Named:
    """Yield messages with times and limits that no clock can hold."""
    for when in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-13-45", "now"):
        yield f"expires {when}", json.dumps(valid(expires=when))
    for when in ("0001-01-01T00:00:00+14:00", "2026-13-45", "now"):
        yield f"eta {when}", json.dumps(valid(eta=when))
    for limits in ([1, "x"], ["x", "y"], [1], [1, 2, 3], [-1, -1], [1e308, 1e308], [None, 10**30]):
        yield f"limits {limits}", json.dumps(valid(timelimit=limits))


def payloads() -> Named:
    """Yield what is hardly a message at all."""
    yield "no JSON", "not json at all"
    yield "half", task_message()[:50]
    yield "not UTF-8", json.dumps(valid(x="@")).encode().replace(b"@", b"\xff")
    yield "lone surrogate", json.dumps(valid(x="@")).replace("@", "\\ud800")
    yield "duplicate keys", json.dumps(valid())[:-1] + ',"headers":5,"properties":[]}'
    yield "a record's end", json.dumps(valid(x='","",""],"'))
    yield "only a record's end", ',"","default"]'
    for name, value in VALUES.items():
        yield name, json.dumps(value)


KINDS: dict[str, Callable[[], Named]] = {
    kind.__name__: kind
    for kind in (headers, properties, bodies, names, serializers, sizes, times, payloads)
}
