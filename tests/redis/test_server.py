"""What the commands do when the server forgets, is full, or is not the master any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from routing.message.eta import Delay
from routing.message.gate import with_mark
from routing.redis import settings
from routing.redis.consumers import Consumer
from routing.redis.faults import ServerRefused
from routing.redis.scripts import SCRIPTS
from routing.redis.settings import LoggedChange
from routing.topology.live import Setting
from tests.apps.basic import close, create
from tests.support.messages import ids_of, numbered
from tests.support.rig import Rig
from tests.support.servers import Server, redis_binary, valkey_binary


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of its own: these tests change how it behaves."""
    binary = valkey_binary() if request.param == "valkey" else redis_binary()
    server = Server(binary, tmp_path_factory.mktemp("own"))
    server.start()
    yield server
    server.close()


@pytest.fixture
def own(server: Server) -> Iterator[Rig]:
    rig = Rig(server.fresh_url())
    for script in SCRIPTS.values():
        rig.client.script_load(script.text)
    yield rig
    rig.client.close()


@contextmanager
def full(rig: Rig) -> Iterator[None]:
    """The server is at its memory limit."""
    rig.client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        rig.client.config_set("maxmemory", 0)


@contextmanager
def replica(rig: Rig, *, stale: str) -> Iterator[None]:
    """The server has become the replica of a master that is away."""
    rig.client.config_set("replica-serve-stale-data", stale)
    rig.client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        rig.client.replicaof("NO", "ONE")
        rig.client.config_set("replica-serve-stale-data", "yes")


def test_a_flushed_script_is_loaded_again_and_runs_once(own: Rig) -> None:
    own.client.script_flush()
    own.push(numbered(2))
    own.client.script_flush()
    arrivals = own.fetch(1)
    own.client.script_flush()
    own.requeue(arrivals, charge=True)
    own.client.script_flush()
    assert own.deliveries() == {"1": 1}
    assert own.purge() == 2
    ledger = own.broker.ledger("q")
    assert ledger == {"accepted": 2, "unacked": 0, "given_back": 1, "purged": 2}


def test_a_full_server_refuses_new_messages(own: Rig) -> None:
    with full(own), pytest.raises(ServerRefused, match="OOM"):
        own.push(numbered(1))
    assert own.broker.length("q") == 0


def test_a_full_server_can_be_drained_and_settled(own: Rig) -> None:
    own.push(numbered(10))
    with full(own):
        arrivals = own.fetch(10)
        assert ids_of(a.payload for a in arrivals) == [str(n) for n in range(1, 11)]
        assert own.broker.unacked("q") == 10
        own.settle(arrivals)
    assert own.broker.holds_nothing()
    assert own.broker.ledger("q") == {"accepted": 10, "unacked": 0, "done": 10}


def test_a_full_server_takes_messages_back(own: Rig) -> None:
    own.push(numbered(3))
    arrivals = own.fetch()
    with full(own):
        assert own.requeue(arrivals, charge=True) == 3
    assert own.ready_ids() == ["1", "2", "3"]
    assert own.broker.holds_nothing()


def test_a_full_server_can_settle_and_fetch_in_one_call(own: Rig) -> None:
    own.push(numbered(4))
    first = own.fetch(2)
    with full(own):
        own.settle(first)
        own.settle(own.fetch(2))
    assert own.broker.holds_nothing()


def test_a_full_server_makes_ready_what_is_due(own: Rig) -> None:
    eta = datetime.now(UTC)
    own.delay([Delay(eta, text, text) for text in numbered(3)])
    own.let_pass(0.01)
    with full(own):
        own.settle(own.fetch(2))
        own.settle(own.fetch(2))
    assert own.delayed() == 0
    assert own.broker.ledger("q") == {"accepted": 3, "unacked": 0, "done": 3}


def test_a_consumer_of_a_full_server_need_not_be_woken(own: Rig) -> None:
    app = create(own.broker.url)
    with full(own), app.connection_for_read() as connection:
        assert connection.channel().fetcher.bell.ring()
    close(app)


def test_a_full_server_can_be_purged(own: Rig) -> None:
    own.push(numbered(3))
    with full(own):
        assert own.purge() == 3


@pytest.mark.parametrize("stale", ["yes", "no"], ids=["READONLY", "MASTERDOWN"])
def test_a_server_that_lost_its_mastership_refuses_and_changes_nothing(
    own: Rig, stale: str
) -> None:
    own.push(numbered(1))
    with replica(own, stale=stale):
        with pytest.raises(ServerRefused, match=r"READONLY|MASTERDOWN"):
            own.push(numbered(1))
        with pytest.raises(ServerRefused, match=r"READONLY|MASTERDOWN"):
            own.fetch()
    assert own.ready_ids() == ["1"]


def test_a_replica_that_never_saw_the_scripts_counts_as_a_lost_connection(own: Rig) -> None:
    with replica(own, stale="yes"):
        own.client.script_flush()
        with pytest.raises(ServerRefused, match=r"READONLY|MASTERDOWN"):
            own.push(numbered(1))


def test_what_was_pushed_and_fetched_survives_a_restart(server: Server) -> None:
    rig = Rig(server.fresh_url())
    rig.push(numbered(3))
    arrivals = rig.fetch(1)
    server.restart()
    assert rig.ready_ids() == ["2", "3"]
    rig.settle(arrivals)
    assert rig.broker.holds_nothing()
    rig.client.close()


def test_the_verbs_work_over_a_unix_socket(server: Server, own: Rig) -> None:
    path: Path = server.socket_path
    number = int(own.broker.url.rpartition("/")[2])
    with redis.Redis(unix_socket_path=str(path), password=server.password, db=number) as client:
        own.commands.push(client, "q", numbered(1))
    assert own.ready_ids() == ["1"]


def test_a_full_server_can_be_told_to_pause_and_to_drain_a_queue(own: Rig) -> None:
    def decide(_: object, now_ms: int) -> tuple[dict[str, Setting], list[LoggedChange]]:
        values = {"paused": True, "drain": True}
        kept = {n: Setting(value=v, by="me", at_ms=now_ms) for n, v in values.items()}
        log = {"queue": "q", "by": "me", "at_ms": now_ms, "before": False, "value": True}
        return kept, [LoggedChange(field=name, **log) for name in values]

    with full(own):
        worker = str(Consumer("bell", 2, "w@host"))
        own.commands.announce(own.client, worker, ["q"], seconds=60)
        settings.change(own.client, own.keys, "q", decide)
        stored = settings.read(own.client, own.keys)
    assert stored.queues["q"]["paused"].value is True
    assert len(settings.read_log(own.client, own.keys)) == 2
    assert own.client.llen(own.keys.own_bell("bell")) == 1
    assert own.push(numbered(1)).drains


def test_a_full_server_parks_what_is_blocked_and_lets_it_start(server: Server) -> None:
    limits = {"shop.send": {"concurrency": 1}}
    rig = Rig(server.fresh_url(), table={"queues": {"q": {}}, "limits": limits})
    rig.push([with_mark(text, "shop.send") for text in numbered(3)])
    with full(rig):
        for number in ("1", "2", "3"):
            arrivals = rig.exchange(gates=("0:0:1",), q=5).arrivals
            assert ids_of(a.payload for a in arrivals) == [number]
            rig.settle(arrivals)
    assert rig.broker.ledger("q") == {"accepted": 3, "unacked": 0, "blocked": 0, "done": 3}
    rig.client.close()
