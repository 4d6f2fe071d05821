"""Connections of a server that is reached through a link which falls silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from routing.redis.faults import sorting
from routing.redis.silence import wary
from tests.support.links import Link
from tests.support.servers import Server


@pytest.fixture
def link(valkey: Server) -> Iterator[Link]:
    with Link(valkey.port) as link:
        yield link


def pool_of(link: Link, valkey: Server) -> redis.ConnectionPool:
    """Return a pool of connections through the link."""
    pool: redis.ConnectionPool = wary(redis.ConnectionPool)(
        connection_class=sorting(redis.Connection),
        host=valkey.host,
        port=link.port,
        password=valkey.password,
        socket_timeout=1.5,
    )
    return pool


def test_what_one_connection_has_not_heard_is_waited_for_on_no_other(
    valkey: Server, link: Link
) -> None:
    pools = [pool_of(link, valkey) for _ in range(2)]
    clients = [redis.Redis(connection_pool=pool) for pool in pools]
    kept = pools[0].get_connection()
    for client in clients:
        assert client.ping()
    assert not kept.is_doubtful
    assert link.silence() == 3
    with pytest.raises(redis.TimeoutError):
        clients[0].ping()
    assert link.unheard == 1
    assert kept.is_doubtful
    for client in clients:
        assert client.ping()
    assert link.unheard == 1
    pools[0].release(kept)
    assert pools[0].get_connection() is kept
    assert not kept.is_doubtful
    for pool in pools:
        pool.disconnect()


def test_who_waits_for_what_may_never_come_has_learnt_nothing(valkey: Server, link: Link) -> None:
    pool = pool_of(link, valkey)
    connection = pool.get_connection()
    with pytest.raises(redis.TimeoutError):
        connection.read_response(timeout=0.05, disconnect_on_error=False)
    assert not connection.is_doubtful
    pool.disconnect()


def test_what_is_heard_again_is_trusted_again(valkey: Server, link: Link) -> None:
    pool = pool_of(link, valkey)
    kept, other = pool.get_connection(), pool.get_connection()
    other.heard_nothing()
    assert kept.is_doubtful
    kept.heard()
    assert not kept.is_doubtful
    pool.disconnect()
