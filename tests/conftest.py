"""Real servers for every test; see `tests.support`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, settings

from routing.transport import overflow
from routing.transport.drops import Drops
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.servers import Server, redis_binary, valkey_binary

# A busy machine is no failure of what is tested.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

#: What takes longest, first: a file that begins last should not be what everybody waits for. The
#: life-like load has to be worked off in time, so what computes most comes after those that wait.
LONGEST = (
    "cluster/test_life.py",
    "worker/test_settings.py",
    "worker/test_unstored.py",
    "worker/test_urls.py",
    "worker/test_batch_life.py",
    "worker/test_leases.py",
    "worker/test_gate.py",
    "tasks/test_demo.py",
    "redis/test_books_balance.py",
    "redis/test_conservation.py",
)
#: These mostly wait; the others compute. All the way there is some of both, so no core is idle.
WAITING = ("cluster", "tasks", "worker", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, then those that wait among those that compute, evenly."""
    root = Path(__file__).parent
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path.relative_to(root).as_posix(), []).append(item)
    kinds: tuple[list[str], list[str]] = ([], [])
    for name in files:
        if name not in LONGEST:
            kinds[name.partition("/")[0] in WAITING].append(name)
    places = {name: n / len(kind) for kind in kinds for n, name in enumerate(kind)}
    order = [*filter(files.__contains__, LONGEST), *sorted(places, key=places.__getitem__)]
    items[:] = [item for name in order for item in files[name]]


@pytest.fixture(scope="session", autouse=True)
def tell_drops_at_once() -> Iterator[None]:
    """Leave no timer that tells in the log of a later test what an earlier one has dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overflow, "DROPS", Drops(interval_seconds=0))
        yield


@pytest.fixture(scope="session", autouse=True)
def close_what_celery_forgets() -> Iterator[None]:
    """Close the connections to a result store that Celery lets go of when one of them is lost."""
    forget = redis.ConnectionPool.reset

    def reset(pool: Any) -> None:
        if vars(pool).get("pid") == os.getpid():  # neither made just now, nor a forked copy
            pool.disconnect()
        forget(pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.ConnectionPool, "reset", reset)
        yield


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One embedded Valkey for the whole run, with a password and an append-only file."""
    server = Server(valkey_binary(), _short(tmp_path_factory))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The machine's Redis, with a password and an append-only file."""
    server = Server(redis_binary(), _short(tmp_path_factory))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def broker_url(valkey: Server) -> str:
    """The URL of an empty broker database."""
    return valkey.fresh_url()


@pytest.fixture
def broker(broker_url: str) -> Iterator[Broker]:
    """The broker database of `broker_url`, as a test looks at it."""
    with Broker(broker_url) as broker:
        yield broker


@pytest.fixture
def client(broker: Broker) -> redis.Redis:
    """A client of the database of `broker_url`."""
    connection: redis.Redis = broker.client
    return connection


def _short(factory: pytest.TempPathFactory) -> Path:
    # The path of a unix socket has at most 107 characters.
    return factory.mktemp("s")


@pytest.fixture
def make_app() -> Iterator[AppFactory]:
    """Makes apps that are nobody's current app, and closes their connections at the end."""
    apps: list[Celery] = []

    def make(broker: str = "memory://", **conf: Any) -> Celery:
        app = Celery("shop", broker=broker, set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return app

    yield make
    for app in apps:
        if app._pool is not None:
            app._pool.force_close_all()
        app.close()
