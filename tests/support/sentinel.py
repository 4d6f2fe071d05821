"""A master, a replica and a Sentinel that knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from tests.support.servers import Server, valkey_binary
from tests.support.wait import eventually

NAME = "the-master"


class SentinelServer(Server):
    """A Sentinel: the same binary, with a configuration file that it writes to."""

    def __init__(self, directory: Path, master: Server) -> None:
        super().__init__(valkey_binary(), directory)
        self.password = ""
        self._configuration = directory / "sentinel.conf"
        self._configuration.write_text(
            f"port {self.port}\n"
            f"bind {self.host}\n"
            f"dir {directory}\n"
            f"sentinel monitor {NAME} {master.host} {master.port} 1\n"
            f"sentinel auth-pass {NAME} {master.password}\n"
            f"sentinel down-after-milliseconds {NAME} 2000\n"
            f"sentinel failover-timeout {NAME} 6000\n"
        )

    @property
    def url(self) -> str:
        """The URL of the Sentinel itself."""
        return f"redis://{self.host}:{self.port}"

    def command(self) -> list[str]:
        """Return the command line."""
        return [self.binary, str(self._configuration), "--sentinel"]


class Watched:
    """A master with a replica, watched by a Sentinel."""

    def __init__(self, directory: Path) -> None:
        self.servers = [Server(valkey_binary(), directory), Server(valkey_binary(), directory)]
        master, replica = self.servers
        replica.password = master.password
        self.sentinel = SentinelServer(directory, master)

    def start(self) -> None:
        """Start all three, and wait until they know each other."""
        master, replica = self.servers
        for server in self.servers:
            server.start()
            server.client().config_set("masterauth", master.password)
        replica.client().replicaof(master.host, master.port)
        self.sentinel.start()
        eventually(lambda: self._state()["num-slaves"] >= 1, 20)
        eventually(self._is_synchronised, 20)

    def close(self) -> None:
        """End all three."""
        for server in (self.sentinel, *self.servers):
            server.close()

    @property
    def url(self) -> str:
        """The broker URL."""
        return f"sentinel://:{self.servers[0].password}@{self.sentinel.host}:{self.sentinel.port}/0"

    @property
    def options(self) -> dict[str, Any]:
        """The transport options that go with it."""
        return {"master_name": NAME}

    @property
    def master(self) -> Server:
        """The server that is the master now."""
        port = int(self._state()["port"])
        return next(server for server in self.servers if server.port == port)

    def fail_over(self) -> None:
        """Make the replica the master, and the master its replica."""
        before = self.master
        with redis.Redis.from_url(self.sentinel.url) as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME)
        eventually(lambda: self.master is not before, 30)
        eventually(lambda: _role(before) == "slave", 30)

    def _is_synchronised(self) -> bool:
        info: Any = self.servers[1].client().info("replication")
        return bool(info["master_link_status"] == "up")

    def _state(self) -> dict[str, Any]:
        with redis.Redis.from_url(self.sentinel.url, decode_responses=True) as client:
            found: Any = client.sentinel_master(NAME)
        return dict(found)


def _role(server: Server) -> str:
    try:
        info: Any = server.client().info("replication")
    except redis.ConnectionError:
        return ""  # it is changing, and drops whoever is connected
    return str(info["role"])
