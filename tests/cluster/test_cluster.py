"""Two workers on one broker."""

from __future__ import annotations

import secrets
from typing import Any

from pytest_celery import CeleryTestSetup  # type: ignore[import-untyped]

from tests.apps.basic import TABLE, Traces
from tests.cluster.conftest import CONCURRENCY
from tests.support.broker import Broker
from tests.support.wait import eventually

PREFETCH = TABLE["queues"]["slow"]["prefetch"]


def send_many(setup: CeleryTestSetup, task: str, count: int, *args: Any, queue: str) -> list[str]:
    signature = setup.app.tasks[f"basic.{task}"]
    names = [f"{secrets.token_hex(4)}-{n}" for n in range(count)]
    for name in names:
        signature.apply_async((name, *args), queue=queue, task_id=name, ignore_result=True)
    return names


def test_two_workers_share_a_queue(
    celery_setup: CeleryTestSetup, broker: Broker, traces: Traces
) -> None:
    assert celery_setup.ready(control=True)
    names = send_many(celery_setup, "mark", 400, 0.005, queue="default")
    eventually(lambda: traces.total() >= 400, 30)
    assert traces.counts() == dict.fromkeys(names, 1)
    eventually(broker.holds_nothing)

    def shares() -> list[int]:
        return [worker.logs().count("succeeded") for worker in celery_setup.worker_cluster]

    eventually(
        lambda: sum(shares()) == 400, message=lambda: str(shares())
    )  # logged at the very end
    assert min(shares()) >= 50, "one worker did nearly everything"


def test_a_stuck_queue_does_not_stop_the_others(
    celery_setup: CeleryTestSetup, broker: Broker, traces: Traces
) -> None:
    stuck = send_many(celery_setup, "held", 20, "gate", queue="slow")
    eventually(lambda: broker.unacked("slow") == 2 * PREFETCH)
    names = send_many(celery_setup, "mark", 300, queue="fast")
    seen = {broker.unacked("slow")}  # all may have run by now
    while traces.total() < 300:
        seen.add(broker.unacked("slow"))
    assert seen == {2 * PREFETCH}
    assert broker.calls_per_second(seconds=3) < 10, "a stuck queue keeps the workers busy"
    assert traces.counts() == dict.fromkeys(names, 1)
    traces.open("gate", times=20)
    eventually(lambda: traces.total() == 320, 20)
    assert traces.counts() == dict.fromkeys([*names, *stuck], 1)


def test_a_rolling_restart_loses_and_repeats_nothing(
    celery_setup: CeleryTestSetup, broker: Broker, traces: Traces
) -> None:
    names = []
    for worker in celery_setup.worker_cluster:
        names += send_many(celery_setup, "mark", 300, 0.01, queue="default")
        enough = len(names) - 250
        eventually(lambda enough=enough: traces.total() >= enough, 30)  # type: ignore[misc]
        worker.restart()
    eventually(lambda: traces.total() >= len(names), 40)
    eventually(broker.holds_nothing)
    assert traces.counts() == dict.fromkeys(names, 1)


def test_a_killed_worker_loses_nothing_and_the_other_goes_on(
    celery_setup: CeleryTestSetup, broker: Broker, traces: Traces
) -> None:
    names = send_many(celery_setup, "held", 3 * CONCURRENCY, "gate", queue="default")
    eventually(lambda: traces.total("started") == 2 * CONCURRENCY)
    assert broker.unacked("default") == 2 * CONCURRENCY
    victim, survivor = celery_setup.worker_cluster
    victim.kill()
    traces.open("gate", times=len(names))
    eventually(lambda: traces.total() == 2 * CONCURRENCY, 30)
    survivor.restart()
    ran = traces.counts()
    assert set(ran.values()) == {1}
    # What the victim held stays recorded, until its leases run out.
    kept = {message["headers"]["id"] for message, _, _ in broker.records().values()}
    assert len(kept) == CONCURRENCY
    assert kept == set(names) - set(ran)


def test_a_broker_restart_under_two_workers_loses_and_repeats_nothing(
    celery_setup: CeleryTestSetup, broker: Broker, traces: Traces
) -> None:
    names = send_many(celery_setup, "mark", 400, 0.01, queue="default")
    eventually(lambda: traces.total() >= 50, 30)
    celery_setup.broker.restart()
    eventually(lambda: traces.total() >= len(names), 60)
    eventually(broker.holds_nothing)
    assert traces.counts() == dict.fromkeys(names, 1)
