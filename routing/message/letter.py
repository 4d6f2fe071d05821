"""One dead letter as a value: a task message in the queue ``<queue>.dead``, and why it is there.

Its evidence stands at the end of its payload (see `routing.message.evidence`).
`routing.redis.letters` reads letters and moves them; which ones are meant is the business of
`routing.deadletters`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

#: Header of a replayed message: when it was first sent, which its new stamp would hide.
FIRST = "first_sent_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter.

    `payload` is what the broker holds, `at_ms` and `first_ms` are when it died and was first sent,
    by the server's clock (0 when it is not known). `replayed` counts its earlier replays. `index`
    is where it stood in the list when it was read: 0 is the newest, -1 the oldest.
    """

    queue: str
    payload: bytes
    id: str = ""
    task: str = ""
    reason: str = ""
    exception: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""
    worker: str = ""
    args: str = ""
    kwargs: str = ""
    attempts: int = 0
    deliveries: int = 0
    replayed: int = 0
    priority: int = 0
    at_ms: int = 0
    first_ms: int = 0
    index: int = field(default=0, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return everything but the payload and its place, under the names of the fields."""
        names = (name for name in self.__slots__ if name not in ("payload", "index"))
        return {name: getattr(self, name) for name in names}


def parse(queue: str, payload: bytes, index: int = 0) -> Letter:
    """Return the letter in a payload of a queue's dead letters, as far as the payload says.

    Whatever somebody put there is a letter; one without evidence has no reason.
    """
    message = message_in(payload)
    headers, ours = table_of(message.get("headers")), table_of(message.get("celeriac"))
    replayed = _number(headers.get("replayed"))
    why, priority = table_of(ours.get("dead")), table_of(message.get("properties")).get("priority")
    fields = ("reason", "exception", "message", "traceback", "fingerprint", "worker")
    return Letter(
        queue=queue,
        payload=payload,
        index=index,
        id=str(headers.get("id") or why.get("id") or ""),
        task=str(headers.get("task") or why.get("task") or ""),
        args=str(headers.get("argsrepr") or ""),
        kwargs=str(headers.get("kwargsrepr") or ""),
        attempts=_number(why.get("attempts")),
        deliveries=_number(why.get("deliveries")),
        replayed=replayed,
        priority=_number(priority),
        at_ms=_number(why.get("at")),
        first_ms=_number(headers.get(FIRST) if replayed else ours.get("at")),
        **{name: str(why.get(name) or "") for name in fields},
    )


def message_in(payload: bytes) -> dict[str, Any]:
    """Return what a payload says, nothing when it is no JSON object."""
    try:
        return table_of(json.loads(payload))
    except (ValueError, RecursionError):
        return {}


def table_of(value: Any) -> dict[str, Any]:
    """Return a value of a message that should be an object, an empty one for any other."""
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
