"""The commands on real servers: on Valkey, on Valkey with a key prefix, on the machine's Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rig import Rig
from tests.support.servers import Server

SERVERS = ["valkey", "valkey with a key prefix", "redis"]


@pytest.fixture(params=SERVERS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The commands on each kind of server."""
    name, _, prefixed = request.param.partition(" with ")
    server: Server = request.getfixturevalue({"valkey": "valkey", "redis": "redis_server"}[name])
    rig = Rig(server.fresh_url(), prefix="shop:" if prefixed else "")
    yield rig
    rig.broker.client.close()
