"""Every way to reach a broker: the same work, end to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from routing.transport.schemes import engine_url, register_aliases
from tests.apps.basic import TABLE
from tests.support.broker import Broker
from tests.support.sentinel import Watched
from tests.support.servers import Server, free_port, valkey_binary
from tests.support.station import Station, station
from tests.support.tls import Terminator
from tests.support.wait import eventually


@dataclass
class Address:
    """A broker URL, its transport options, and a plain URL of the same database."""

    url: str
    store: str
    options: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""


def number(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.fixture
def plain(valkey: Server) -> Address:
    url = valkey.fresh_url()
    return Address(url, url)


@pytest.fixture
def on_redis(redis_server: Server) -> Address:
    url = redis_server.fresh_url()
    return Address(url, url)


@pytest.fixture
def with_failover(valkey: Server) -> Address:
    url = valkey.fresh_url()
    return Address(f"redis://127.0.0.1:{free_port()}/0;{url}", url)


@pytest.fixture
def unix_socket(valkey: Server) -> Address:
    url = valkey.fresh_url()
    path = f"redis+socket://:{valkey.password}@{valkey.socket_path}?virtual_host={number(url)}"
    return Address(path, url)


@pytest.fixture
def key_prefix(valkey: Server) -> Address:
    url = valkey.fresh_url()
    return Address(url, url, {"global_keyprefix": "shop:"}, "shop:")


@pytest.fixture
def acl_user(valkey: Server) -> Address:
    url = valkey.fresh_url()
    valkey.client().acl_setuser(
        "celery",
        enabled=True,
        passwords=["+secret"],
        commands=["+@all"],
        keys=["*"],
        channels=["*"],
    )
    return Address(f"redis://celery:secret@127.0.0.1:{valkey.port}/{number(url)}", url)


@pytest.fixture
def tls(valkey: Server, tmp_path: Path) -> Iterator[Address]:
    url = valkey.fresh_url()
    with closing(Terminator(valkey.port, tmp_path)) as terminator:
        query = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={terminator.authority}"
        where = f":{valkey.password}@127.0.0.1:{terminator.port}/{number(url)}"
        yield Address(f"rediss://{where}?{query}", url)
        assert terminator.handshakes > 0


@pytest.fixture
def sentinel(watched: Watched) -> Address:
    master = watched.master
    master.client().flushall()
    return Address(watched.url, master.url, watched.options)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(tmp_path_factory.mktemp("w"))
    try:
        watched.start()
        yield watched
    finally:
        watched.close()


ADDRESSES = [
    "on_redis",
    "with_failover",
    "unix_socket",
    "key_prefix",
    "acl_user",
    "tls",
    "sentinel",
]


@pytest.fixture(params=ADDRESSES)
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def at(address: Address) -> Iterator[Station]:
    with station(
        address.url,
        "threads",
        store=address.store,
        options=address.options,
        broker_prefix=address.prefix,
    ) as running:
        yield running


def test_work_is_sent_run_bounded_and_settled(at: Station, address: Address) -> None:
    transport = at.app.connection_for_write().transport_cls
    assert "celeriac" in transport
    assert at.send("add", 2, 3).get(timeout=20) == 5
    assert at.send("where", priority="low").get(timeout=20) == "low"
    at.send_many("mark", 100, queue="fast")
    at.wait_until_ran(100)
    at.wait_until_settled()
    assert at.broker.ledger("fast")["done"] == 100
    assert at.worker.terminate() == 0
    if address.prefix:
        keys = {key.decode() for key in at.broker.client.keys("*")}
        assert {k for k in keys if "celeriac" in k or "unacked" in k} == {
            k for k in keys if k.startswith(address.prefix) and ("celeriac" in k or "unacked" in k)
        }


def test_a_worker_moves_to_the_next_url_when_its_broker_goes(
    valkey: Server, tmp_path: Path
) -> None:
    first = Server(valkey_binary(), tmp_path)
    first.start()
    second = valkey.fresh_url()
    with (
        closing(first),
        station(
            f"{first.url};{second}",
            "prefork",
            store=second,
            settings={"table": {**TABLE, "lease_seconds": 3}},
        ) as at,
    ):
        at.send("mark", "on the first", ignore_result=True)
        at.wait_until_ran(1)
        first.stop()
        # For longer than a lease: it is renewed there too.
        args = ["on the second", 5]
        at.app.send_task("basic.mark", args, queue="default", ignore_result=True)
        at.wait_until_ran(2, timeout=60)
        eventually(at.broker.holds_nothing)
        assert at.broker.ledger("default")["done"] == 1


def test_a_worker_follows_the_master_that_sentinel_names(watched: Watched, valkey: Server) -> None:
    options, traces_url = watched.options, valkey.fresh_url()
    master = watched.master
    with station(watched.url, "prefork", store=traces_url, view=master.url, options=options) as at:
        names = at.send_many("held", 2, "gate", queue="bulk")
        for _ in names:
            at.traces.next_start()
        assert master.client().wait(1, 5000) >= 1
        watched.fail_over()
        at.traces.open("gate", times=2)
        at.send("mark", "after", ignore_result=True)
        at.wait_until_ran(3, timeout=60)
        assert at.traces.counts() == dict.fromkeys([*names, "after"], 1)
        with Broker(watched.master.url) as broker:
            eventually(broker.holds_nothing, message=lambda: str(broker.records()))


def test_a_certificate_of_a_stranger_is_refused(valkey: Server, tmp_path: Path) -> None:
    register_aliases()
    with closing(Terminator(valkey.port, tmp_path)) as terminator:
        query = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={terminator.stranger}"
        url = f"rediss://:{valkey.password}@127.0.0.1:{terminator.port}/0?{query}"
        with Connection(engine_url(url)) as connection, pytest.raises(Exception, match="CERTIF"):
            connection.ensure_connection(max_retries=1)
        assert terminator.handshakes == 0


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_a_url_still_prints_as_its_user_wrote_it(scheme: str) -> None:
    register_aliases()
    url = f"{scheme}://localhost:6379/3"
    with Connection(engine_url(url)) as ours, Connection(url) as stock:
        assert ours.as_uri() == stock.as_uri()
