"""A command that its user may not run on the server is named, with what allows it."""

from __future__ import annotations

import pytest

from routing.redis.permissions import denied
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.users import NEEDED, User, celery

KEY = "celeriac:workers"


@pytest.mark.parametrize("missing", ["time", "evalsha", "script|load", "hset", "zscan", "brpop"])
def test_a_command_that_is_needed_and_denied_is_named(valkey: Server, missing: str) -> None:
    user = User(valkey, *NEEDED, f"-{missing}")
    with Broker(user.url) as broker:
        assert denied(broker.client, KEY) == [missing]
    done = celery(user.url, "doctor", "--timeout", "0.2")
    assert "Traceback" not in done.stderr, done.stderr
    assert f"+{missing}" in done.stdout + done.stderr
    assert done.returncode in (2, 77)


def test_a_user_with_what_is_listed_lacks_nothing(valkey: Server, redis_server: Server) -> None:
    for server in (valkey, redis_server):
        with Broker(User(server, *NEEDED).url) as broker:
            assert denied(broker.client, KEY) == []


def test_a_user_that_may_not_touch_our_keys_is_told_so(
    valkey: Server, redis_server: Server
) -> None:
    for server in (valkey, redis_server):
        user = User(server, *NEEDED, "-hset", "-time", "resetkeys", "~default*")
        with Broker(user.url) as broker:
            assert denied(broker.client, KEY) == ["~celeriac:*", "time"]
            assert denied(broker.client, f"shop:{KEY}")[0] == "~shop:celeriac:*"
            assert broker.client.ping()
    done = celery(user.url, "doctor", "--timeout", "0.2")
    assert "ACL SETUSER <user> ~celeriac:* +time" in done.stdout + done.stderr
    assert done.returncode in (2, 77)


def test_a_key_that_is_needed_and_denied_is_looked_for_in_the_servers_log(valkey: Server) -> None:
    user = User(valkey, *NEEDED, "resetkeys", "~celeriac:*")
    done = celery(user.url, "queues")
    assert done.returncode == 77
    assert "it lacks a key, which ACL LOG on the server names" in done.stderr
