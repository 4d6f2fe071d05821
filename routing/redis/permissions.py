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

#: What the engine runs itself: scripts, one blocking wait, its own bell, purges and dead letters.
_DIRECT = ("evalsha", "script|load", "brpop", "lpush", "rpop", "pexpire", "llen", "lrange", "time")

#: What its scripts run besides: the server asks for these permissions too.
_IN_SCRIPTS = (
    "del", "exists", "hdel", "hexists", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset",
    "incr", "incrby", "lindex", "lrem", "ltrim", "rpush", "zadd", "zcard", "zmscore", "zrange",
    "zrangebyscore", "zrem",
)  # fmt: skip

#: What kombu runs: connections, bindings of queues, remote control and events.
_BY_KOMBU = (
    "select", "ping", "multi", "exec", "sadd", "srem", "smembers", "publish", "subscribe",
    "unsubscribe", "psubscribe", "punsubscribe", "expire", "unwatch", "watch", "script|exists",
)  # fmt: skip

#: What ``celery doctor`` and ``celery queues --verify`` look with.
_TO_LOOK = ("hscan", "zscan", "zcount")

#: The commands that a user must be allowed to run, as ACL rules name them.
COMMANDS: tuple[str, ...] = tuple(sorted({*_DIRECT, *_IN_SCRIPTS, *_BY_KOMBU, *_TO_LOOK}))

# Servers before version 7 cannot be asked.
_ASK = """
local denied = {}
if not redis.acl_check_cmd then return denied end
for _, name in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(name, '[^|]+') do words[#words + 1] = word end
  if not redis.acl_check_cmd(unpack(words)) then denied[#denied + 1] = name end
end
return denied
"""


def denied(client: redis.Redis) -> list[str]:
    """Return which of `COMMANDS` the client's user may not run, as far as the server tells."""
    ask: Any = client.register_script(_ASK)
    try:
        answer = ask(args=COMMANDS)
    except exceptions.NoPermissionError:
        return [name for name in ("evalsha", "script|load") if not _may(client, name)]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in answer]


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
    """Return the ACL rules that allow these commands."""
    return " ".join(f"+{name}" for name in names)
