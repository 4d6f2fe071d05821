"""The Lua commands, loaded from ``lua/``, and how they are called.

A script's header names its keys, arguments and reply; :data:`SCRIPTS` holds them parsed, and a test
compares them with the calls in ``commands.py``. NOSCRIPT (a flushed or restarted server) loads the
script and calls again: a refused call has not run. What the server will not do now is raised as
`ServerRefused`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import redis
from redis import exceptions

from routing.errors import ScriptError
from routing.redis.faults import sorted_error

_SECTION = re.compile(r"^-- (KEYS|ARGV|Reply):\s*(.*)$")

#: A line in whose place the text of ``lua/includes/<name>.lua`` stands on the server.
_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One script: its source, the SHA1 that the server knows it by, and its header."""

    name: str
    text: str
    sha: str
    header: dict[str, str]


def load(name: str) -> Script:
    """Read the script ``lua/<name>.lua``, with what it includes, and its header.

    Raises:
        ScriptError: the header does not describe KEYS, ARGV and Reply.
    """
    text = _read(f"{name}.lua")
    header: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        if found := _SECTION.match(line):
            section = found.group(1)
            header[section] = found.group(2)
        elif section:
            header[section] += "\n" + line[2:].strip()
    missing = {"KEYS", "ARGV", "Reply"} - header.keys()
    if missing:
        raise ScriptError(
            f"lua/{name}.lua: expected a header with KEYS, ARGV and Reply, "
            f"got none for {', '.join(sorted(missing))}"
        )
    text = _INCLUDE.sub(lambda found: _read("includes", f"{found[1]}.lua").rstrip(), text)
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name=name, text=text, sha=sha, header=header)


def _read(*path: str) -> str:
    return files("routing.redis").joinpath("lua", *path).read_text(encoding="utf-8")


SCRIPTS = {
    name: load(name)
    for name in (
        "push",
        "delay",
        "postpone",
        "exchange",
        "requeue",
        "bury",
        "revive",
        "purge",
        "ledger",
        "rebase",
        "renew",
        "reclaim",
        "claim",
        "store",
        "change",
        "announce",
    )
}


def load_all(client: redis.Redis) -> None:
    """Load every script on a server that has forgotten them."""
    for script in SCRIPTS.values():
        client.script_load(script.text)


def command(name: str, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
    """Return the EVALSHA command of a script, for a connection that is driven by hand.

    An empty key stands for none. The script gets its first one there: an empty one is among those
    that a user who may touch certain keys may not.
    """
    present = [key or keys[0] for key in keys]
    return ["EVALSHA", SCRIPTS[name].sha, len(keys), *present, *args]


def run_script(client: redis.Redis, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """Run a script and return its reply.

    Raises:
        redis.exceptions.ConnectionError: the server is away.
        ServerRefused: it will not do it now, or is no longer the master.
    """
    execute: Any = client.execute_command
    try:
        try:
            return execute(*command(name, keys, args))
        except exceptions.NoScriptError:
            client.script_load(SCRIPTS[name].text)
            return execute(*command(name, keys, args))
    except exceptions.ResponseError as error:
        raise sorted_error(error) from error
