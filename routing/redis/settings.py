"""What was set for queues at run time, as the broker keeps it: by whom, when, and what it was.

One hash for the database, queue -> JSON; a number that changes with it, so that nobody reads it
twice; and a list of the last changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis

from routing.redis.keys import Keys
from routing.redis.scripts import run_script
from routing.topology.live import QueueSettings, Setting

#: Changes that the log keeps.
LOG_AT_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSettings:
    """Every setting of a database at one moment."""

    version: int
    queues: Mapping[str, QueueSettings]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedChange:
    """One entry of the log; `value` is None where the table holds again."""

    queue: str
    field: str
    value: Any
    before: Any
    by: str
    at_ms: int


def read(client: redis.Redis, keys: Keys) -> StoredSettings:
    """Return what is stored, as far as it can be read."""
    # A full server refuses a transaction, whatever it does. The version is read first: a change in
    # between is read with the old one, and so once more.
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.get(keys.settings_version())
    pipeline.hgetall(keys.settings())
    version, texts = pipeline.execute()
    return StoredSettings(
        version=int(version or 0),
        queues={queue.decode(): parse(text) for queue, text in texts.items()},
    )


def read_log(client: redis.Redis, keys: Keys) -> list[LoggedChange]:
    """Return the last changes, the newest first."""
    texts: Any = client.lrange(keys.settings_log(), 0, LOG_AT_MOST - 1)
    names = LoggedChange.__slots__
    entries = [json.loads(text) for text in texts]
    return [LoggedChange(**{name: entry.get(name) for name in names}) for entry in entries]


def change(
    client: redis.Redis,
    keys: Keys,
    queue: str,
    decide: Callable[[QueueSettings, int], tuple[QueueSettings, Sequence[LoggedChange]]],
) -> tuple[QueueSettings, int]:
    """Change what is stored for one queue; returns it, with its version.

    Arguments:
        client: a client that adds no key prefix.
        decide: is given what is stored and the server's clock in milliseconds, and returns what
            takes its place, with what the log is to say; asked again when somebody else was first.
    """
    any_client: Any = client
    while True:
        text = any_client.hget(keys.settings(), queue) or b""
        seconds, micros = any_client.time()
        settings, entries = decide(parse(text), int(seconds) * 1000 + int(micros) // 1000)
        drains = "1" if (one := settings.get("drain")) and one.value is True else ""
        names = [keys.settings(), keys.settings_version(), keys.settings_log()]
        names += [keys.draining(queue), keys.consumers(queue)]
        args = [queue, text, _text(settings), drains, keys.own_bell(""), LOG_AT_MOST]
        args += [json.dumps(asdict(entry)) for entry in entries]
        if version := int(run_script(client, "change", names, args)):
            return settings, version


def parse(text: bytes) -> QueueSettings:
    """Return the settings of a queue; what is no setting is left out."""
    try:
        found = json.loads(text or b"{}")
        return {
            name: Setting(**{key: one[key] for key in ("value", "by", "at_ms", "before")})
            for name, one in found.items()
        }
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}


def _text(settings: QueueSettings) -> str:
    return json.dumps({name: asdict(one) for name, one in settings.items()}) if settings else ""
