"""What a user of the server must be allowed to do, and what one is not.

A server with access control (ACL) may give the application a user of its own. `COMMANDS` is what
the engine and kombu's control channel need of it; everything else that is asked for only looks,
and whoever looks goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis import exceptions

T = TypeVar("T")

# What a script gets in the place of NOPERM, since Redis 7 and before.
_IN_A_SCRIPT = ("ACL failure in script", "The user executing the script can't")

#: In a command's arguments: a key of the engine's.
_KEY = "{key}"

#: What the engine runs itself: scripts, one blocking wait, its own bell, purges and dead letters.
_DIRECT = (
    f"evalsha {'0' * 40} 0", "script load 0", f"brpop {_KEY} 1", f"lpush {_KEY} 0", f"rpop {_KEY}",
    f"pexpire {_KEY} 1", f"llen {_KEY}", f"lrange {_KEY} 0 0", "time",
)  # fmt: skip

#: What its scripts run besides: the server asks for these permissions too.
_IN_SCRIPTS = (
    f"del {_KEY}", f"exists {_KEY}", f"hdel {_KEY} 0", f"hexists {_KEY} 0", f"hget {_KEY} 0",
    f"hgetall {_KEY}", f"hincrby {_KEY} 0 1", f"hlen {_KEY}", f"hmget {_KEY} 0",
    f"hset {_KEY} 0 0", f"incr {_KEY}", f"incrby {_KEY} 1", f"lindex {_KEY} 0",
    f"lrem {_KEY} 1 0", f"lset {_KEY} 0 0", f"ltrim {_KEY} 0 0", f"rpush {_KEY} 0",
    f"zadd {_KEY} 0 0", f"zcard {_KEY}", f"zmscore {_KEY} 0", f"zrange {_KEY} 0 0",
    f"zrangebyscore {_KEY} 0 0", f"zrem {_KEY} 0", f"zremrangebyscore {_KEY} 0 0",
    f"zscore {_KEY} 0", f"set {_KEY} 0", f"get {_KEY}",
)  # fmt: skip

#: What kombu runs: connections, bindings of queues, remote control and events.
_BY_KOMBU = (
    "select 0", "ping", "multi", "exec", f"sadd {_KEY} 0", f"srem {_KEY} 0", f"smembers {_KEY}",
    "publish 0 0", "subscribe 0", "unsubscribe", "psubscribe 0", "punsubscribe", f"expire {_KEY} 1",
    "unwatch", f"watch {_KEY}", f"script exists {'0' * 40}",
)  # fmt: skip

#: What ``celery doctor`` and ``celery queues --verify`` look with.
_TO_LOOK = (f"hscan {_KEY} 0", f"zscan {_KEY} 0", f"zcount {_KEY} 0 0")


def _name_of(line: str) -> str:
    first, *rest = line.split()
    return f"{first}|{rest[0]}" if first == "script" else first


#: The commands that a user must be allowed to run, as ACL rules name them, each with a whole line:
#: a server that looks for the keys of an incomplete one may crash (Valkey 9.1).
_LINES = {_name_of(line): line for line in (*_DIRECT, *_IN_SCRIPTS, *_BY_KOMBU, *_TO_LOOK)}

#: Their names.
COMMANDS: tuple[str, ...] = tuple(sorted(_LINES))

# Servers before version 7 cannot be asked.
_ASK = """
local denied = {}
if not redis.acl_check_cmd then return denied end
for i = 2, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do
    words[#words + 1] = word == '{key}' and ARGV[1] or word
  end
  if not redis.acl_check_cmd(unpack(words)) then denied[#denied + 1] = i - 2 end
end
return denied
"""


def denied(client: redis.Redis, key: str) -> list[str]:
    """Return which of `COMMANDS` the client's user may not run, as far as the server tells.

    A user that may not touch the engine's own keys lacks a rule for them, ``~celeriac:*``, whatever
    it may run. It needs more keys, such as those of the queues.

    Arguments:
        client: asks; it must put nothing before names of keys.
        key: one of the engine's keys.
    """
    ask: Any = client.register_script(_ASK)
    try:
        answer = ask(args=[key, *(_LINES[name] for name in COMMANDS)])
    except exceptions.NoPermissionError:
        return [name for name in ("evalsha", "script|load") if not _may(client, name)]
    names = [COMMANDS[number] for number in answer]
    if set(names) >= (keyed := {name for name, line in _LINES.items() if _KEY in line}):
        own = "~" + key[: key.rindex(":") + 1] + "*"
        return [own, *(name for name in names if name not in keyed)]
    return names


def _may(client: redis.Redis, name: str) -> bool:
    tries: dict[str, Callable[[], Any]] = {
        "evalsha": lambda: client.evalsha("0" * 40, 0),
        "script|load": lambda: client.script_load("return 0"),
    }
    try:
        tries[name]()
    except exceptions.NoPermissionError:
        return False
    except exceptions.ResponseError:
        return True
    return True


def is_denied(error: BaseException) -> bool:
    """Return whether the server refused because the user may not do it."""
    return isinstance(error, exceptions.NoPermissionError) or (
        isinstance(error, exceptions.ResponseError)
        and any(text in str(error) for text in _IN_A_SCRIPT)
    )


def unless_denied(look: Callable[[], T]) -> T | None:
    """Return what a look at the server shows, None when the user may not look."""
    try:
        return look()
    except exceptions.NoPermissionError:
        return None


def grant(names: list[str]) -> str:
    """Return the ACL rules that allow these commands, or keys."""
    return " ".join(name if name.startswith("~") else f"+{name}" for name in names)
