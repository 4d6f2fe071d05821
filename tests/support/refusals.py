"""Ways in which a server refuses, stands still, or cuts its clients off, for a moment.

Each is a context manager over a server of the test's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis import exceptions

from tests.support.servers import Server
from tests.support.wait import elapse, eventually

#: Seconds that an outage lasts.
OUTAGE_SECONDS = 1.2

_SPIN = """
local function now() local t = redis.call('TIME'); return t[1] * 1000 + t[2] / 1000 end
local until_ms = now() + tonumber(ARGV[1])
while now() < until_ms do end
"""


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """Somebody's script runs, and everybody else is told so."""
    client = server.client()
    client.config_set("busy-reply-threshold", 50)
    script = threading.Thread(target=client.eval, args=(_SPIN, 0, OUTAGE_SECONDS * 1000))
    script.start()
    yield
    script.join()


@contextmanager
def full(server: Server) -> Iterator[None]:
    """Its memory is full."""
    with _set(server, "maxmemory", 1, 0):
        yield


@contextmanager
def no_replicas(server: Server) -> Iterator[None]:
    """It has not the replicas that it must have for writes."""
    with _set(server, "min-replicas-to-write", 1, 0):
        yield


@contextmanager
def read_only(server: Server) -> Iterator[None]:
    """It has become a replica."""
    client = server.client()
    client.replicaof("127.0.0.1", "1")
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def not_saving(server: Server) -> Iterator[None]:
    """Its disk takes no snapshots, so it takes no writes."""
    client = server.client()
    directory = server.directory / "in-the-way.rdb"
    directory.mkdir(exist_ok=True)
    (directory / "full").touch()
    client.config_set("save", "3600 100000")
    client.config_set("dbfilename", directory.name)
    client.bgsave()
    failed = {"rdb_last_bgsave_status": "err"}
    eventually(lambda: failed.items() <= client.info("persistence").items())
    yield
    client.config_set("save", "")
    client.config_set("dbfilename", "dump.rdb")


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """It answers nobody, and says nothing."""
    server.client().client_pause(int(OUTAGE_SECONDS * 1000), all=True)
    yield


@contextmanager
def loading(server: Server) -> Iterator[None]:
    """It loads its data again, and stands still for it."""

    def reload() -> None:
        client = server.client()
        client.execute_command("DEBUG", "RELOAD")
        client.execute_command("DEBUG", "SLEEP", str(OUTAGE_SECONDS))

    thread = threading.Thread(target=reload)
    thread.start()
    yield
    thread.join()


@contextmanager
def crowded(server: Server) -> Iterator[None]:
    """It takes no more clients, and has dropped the ones it had."""
    client = server.client()
    before = client.config_get("maxclients")["maxclients"]
    client.config_set("maxclients", 1)
    server.kill_others(client)
    yield
    client.config_set("maxclients", before)


@contextmanager
def cut_off(server: Server) -> Iterator[None]:
    """It has dropped all of its clients."""
    server.kill_clients()
    yield


REFUSALS: dict[str, Callable[[Server], contextlib.AbstractContextManager[None]]] = {
    "busy": busy,
    "full": full,
    "no_replicas": no_replicas,
    "read_only": read_only,
    "not_saving": not_saving,
    "paused": paused,
    "loading": loading,
    "crowded": crowded,
    "cut_off": cut_off,
}


@contextmanager
def outage(server: Server, how: str) -> Iterator[None]:
    """Let it be in trouble for `OUTAGE_SECONDS`, in one of the ways of `REFUSALS`."""
    with REFUSALS[how](server):
        elapse(OUTAGE_SECONDS)
        yield


@contextmanager
def _set(server: Server, name: str, value: int, after: int) -> Iterator[None]:
    client = server.client()
    client.config_set(name, value)
    yield
    client.config_set(name, after)


def is_well(server: Server) -> bool:
    """Return whether it takes writes."""
    try:
        return bool(server.client().set("celeriac-test-is-well", "1", px=10))
    except exceptions.RedisError:
        return False
