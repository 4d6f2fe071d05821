"""Task messages as kombu stores them: complete JSON payloads."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from kombu.utils.json import dumps


def task_message(
    task: str = "tests.noop",
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    queue: str = "q",
    message_id: str = "",
    body: Any = None,
    headers: dict[str, Any] | None = None,
    priority: int = 0,
) -> str:
    """Return the text that stock Celery's producer puts into a list for a call of this task.

    Arguments:
        body: what the body holds instead of args and kwargs, as text.
        headers: further headers.
    """
    message_id = message_id or str(uuid.uuid4())
    if body is None:
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        body = json.dumps([args, kwargs or {}, embed])
    message = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": message_id,
            "root_id": message_id,
            "parent_id": None,
            "argsrepr": repr(args),
            "kwargsrepr": repr(kwargs or {}),
            **(headers or {}),
        },
        "properties": {
            "correlation_id": message_id,
            "reply_to": None,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    text: str = dumps(message)
    return text


def id_of(text: str | bytes) -> str:
    """Return the id of a message."""
    identifier: str = json.loads(text)["headers"]["id"]
    return identifier


def ids_of(payloads: Any) -> list[str]:
    """Return the ids of messages."""
    return [id_of(text) for text in payloads]


def numbered(count: int, *, queue: str = "q", first: int = 1) -> list[str]:
    """Return messages with the ids "1", "2", ..."""
    return [task_message(queue=queue, message_id=str(n)) for n in range(first, first + count)]
