"""More than a queue takes, workers that are too slow and are killed: all is accounted for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.scene import Scene
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

BURST = 10_000


def test_a_burst_and_kills_are_accounted_for_to_one_message(valkey: Server, tmp_path: Path) -> None:
    with Scene(valkey.fresh_url(), tmp_path) as at, sibling_of(at) as sibling:
        receipts = at.app.tasks["sink.count"].delay_many(map(str, range(BURST)), queue="burst")
        assert receipts.accepted == BURST
        for worker in (at.worker, sibling):
            os.kill(worker.children[0], signal.SIGKILL)
            enough = at.traces.total() + 300
            eventually(lambda enough=enough: at.traces.total() >= enough, 30)  # type: ignore[misc]
            worker.kill()
            assert at.ledger("burst").difference == 0
            worker.start()
        book = at.wait_until_all_ended("burst", timeout=90)
        ran = at.traces.counts()
    assert book["accepted"] == BURST
    assert book["reclaimed"] > 0
    assert book["dropped"] > 0
    assert len(ran) == book["done"] == BURST - book["dropped"]


def sibling_of(at: Scene) -> Worker:
    """Return another worker of the same app."""
    return Worker("tests.apps.sink", env=at.env)
