"""A broker, a result backend and two workers, by pytest-celery's fixtures, as local processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import (  # type: ignore[import-untyped]
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

from tests.apps.basic import Traces, close
from tests.apps.cluster import equip
from tests.support.broker import Broker
from tests.support.processes import LocalValkeyContainer, LocalWorkerContainer
from tests.support.servers import Server, valkey_binary

#: One slot more than the stuck queue of each worker can take.
CONCURRENCY = 3


class Setup(CeleryTestSetup):
    """pytest-celery's setup, with our queue table in the app that sends."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        """Install the table and the tasks."""
        equip(app, traces_url=app.conf.result_backend)

    def teardown(self) -> None:
        """Close the connections of the app that sends."""
        close(self.app)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return Setup


@pytest.fixture
def celery_broker_cluster(tmp_path: Path) -> Iterator[CeleryBrokerCluster]:
    broker = CeleryTestBroker(_valkey(tmp_path))
    yield CeleryBrokerCluster(broker)
    broker.teardown()


@pytest.fixture
def celery_backend_cluster(tmp_path: Path) -> Iterator[CeleryBackendCluster]:
    backend = CeleryTestBackend(_valkey(tmp_path))
    yield CeleryBackendCluster(backend)
    backend.teardown()


def _valkey(directory: Path) -> LocalValkeyContainer:
    server = Server(valkey_binary(), directory)
    server.start()
    return LocalValkeyContainer(server)


@pytest.fixture
def celery_worker_cluster(
    celery_worker_cluster_config: dict[str, Any], celery_setup_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    env = LocalWorkerContainer.initial_env(celery_worker_cluster_config)
    containers = [
        LocalWorkerContainer("tests.apps.cluster", env=env, concurrency=CONCURRENCY)
        for _ in range(2)
    ]
    try:
        for container in containers:
            container.worker.launch()
        for container in containers:
            container.worker.wait_log(container.ready_prompt, 60)
        yield CeleryWorkerCluster(*(CeleryTestWorker(c, celery_setup_app) for c in containers))
    finally:
        for container in containers:
            container.teardown()


@pytest.fixture
def traces(celery_backend_cluster: CeleryBackendCluster) -> Iterator[Traces]:
    """What the tasks left behind."""
    traces = Traces(celery_backend_cluster[0].config()["host_url"])
    yield traces
    traces.client.close()


@pytest.fixture
def broker(celery_broker_cluster: CeleryBrokerCluster) -> Iterator[Broker]:
    """The broker, as a test looks at it."""
    with Broker(celery_broker_cluster[0].config()["host_url"]) as broker:
        yield broker
