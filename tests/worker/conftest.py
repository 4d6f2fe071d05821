"""Workers in processes of their own, one for each pool, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from tests.apps.basic import Traces, close, create
from tests.support.broker import Broker
from tests.support.servers import Server

POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture
def app(broker_url: str) -> Iterator[Celery]:
    """The basic app in this process, to send with."""
    app = create(broker_url)
    yield app
    close(app)


@pytest.fixture
def traces(broker_url: str) -> Iterator[Traces]:
    """What the tasks left behind."""
    traces = Traces(broker_url)
    yield traces
    traces.client.close()


@pytest.fixture(scope="module")
def shared_url(valkey: Server) -> str:
    """A broker database for the tests of one module."""
    return valkey.fresh_url()


@pytest.fixture(scope="module")
def shared_broker(shared_url: str) -> Iterator[Broker]:
    """The shared database, as a test looks at it."""
    with Broker(shared_url) as broker:
        yield broker
