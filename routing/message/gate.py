"""The mark of a message for the gate of its task or key, at the end of its payload.

Scripts never decode a message, and look only there. Until the payload is written, the mark travels
as a header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: The header that carries the mark within a process; no stored message has it.
HEADER = "celeriac_gate"


def take_mark(message: dict[str, Any]) -> str | None:
    """Take the mark out of a message; None when nothing limits its task."""
    headers = message.get("headers")
    if not isinstance(headers, Mapping) or HEADER not in headers:
        return None
    # Not out of the producer's own headers: it may send the message again.
    message["headers"] = {name: value for name, value in headers.items() if name != HEADER}
    return str(headers[HEADER])


def with_mark(payload: str, mark: str | None) -> str:
    """Return a payload that ends with its mark.

    >>> with_mark('{"body": ""}', "tasks.send|a")
    '{"body": "","celeriac":{"gate":"tasks.send|a"}}'
    """
    return f'{payload[:-1]},"celeriac":{{"gate":"{mark}"}}}}' if mark else payload


def marked(message: dict[str, Any], dumps: Callable[[Any], str]) -> str:
    """Return a message as text, with its mark at the end."""
    mark = take_mark(message)
    return with_mark(dumps(message), mark)
