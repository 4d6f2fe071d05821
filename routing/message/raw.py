"""An entry of a queue that is no message, in the form of one, so that it can be kept and looked at.

The entry itself is the body, in base64: it may be anything, also no text. `raw_of` takes it out
again when it is replayed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

#: What tells such a message from every other.
CONTENT_TYPE = "application/x-celeriac-raw"


def wrap(raw: bytes, *, queue: str) -> str:
    """Return the text of a message that carries this entry of a queue."""
    return json.dumps(
        {
            "body": base64.b64encode(raw).decode("ascii"),
            "content-type": CONTENT_TYPE,
            "content-encoding": "binary",
            "headers": {},
            "properties": {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": queue},
                "delivery_tag": "",
                "priority": 0,
            },
        }
    )


def raw_of(message: Mapping[str, Any]) -> bytes | None:
    """Return the entry that a message carries, None when it is a message of its own."""
    if message.get("content-type") != CONTENT_TYPE:
        return None
    try:
        return base64.b64decode(message["body"])
    except (KeyError, TypeError, ValueError):
        return None  # somebody else's
