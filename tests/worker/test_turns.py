"""Every queue that has work has its turns, whatever its place, its weight and other backlogs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.apps.basic import TABLE
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.worker.conftest import POOLS


def settings(heavy: str, light: str) -> dict[str, Any]:
    """The heavier queue stands first in the table."""
    return {"table": {**TABLE, "queues": {heavy: {"weight": 3}, light: {}, **TABLE["queues"]}}}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("seconds", [0.01, 0.1], ids=["as long", "longer"])
def test_a_backlog_of_less_weight_has_its_share_of_turns(
    valkey: Server, pool: str, seconds: float
) -> None:
    with station(valkey.fresh_url(), pool, 2, settings=settings("heavy", "light")) as at:
        at.stop_consuming("heavy")
        at.stop_consuming("light")
        heavy = at.send_many("mark", 400, 0.01, queue="heavy", prefix="heavy")
        light = at.send_many("mark", 10, seconds, queue="light", prefix="light")
        at.consume("heavy")
        at.consume("light")
        at.wait_until_ran(len(heavy) + len(light), timeout=60)
        # By weight it needs three times as much time of the heavier one's as it takes itself.
        needed = 3 * len(light) * seconds / 0.01
        before_last = last_run(at, "light") - len(light) + 1
        assert before_last <= min(needed + 60, len(heavy) - 20)
        at.wait_until_settled()


@pytest.mark.parametrize("pool", POOLS)
def test_what_comes_beside_a_backlog_of_more_weight_is_heard_of(valkey: Server, pool: str) -> None:
    with station(valkey.fresh_url(), pool, 2, settings=settings("heavy", "light")) as at:
        heavy = at.send_many("mark", 600, 0.01, queue="heavy", prefix="heavy")
        for n in range(5):
            at.wait_until_ran(50 * (n + 1))
            begun = at.traces.total("started")
            (late,) = at.send_many("mark", 1, 0.01, queue="light", prefix=f"light{n}")
            at.wait_until_ended(late)
            assert at.traces.client.lpos("runs", late) <= begun + 40
        at.wait_until_ran(len(heavy) + 5, timeout=60)
        at.wait_until_settled()


def last_run(at: Station, prefix: str) -> int:
    """Return the place of the last run of these names among all runs."""
    runs = [name.decode() for name in at.traces.client.lrange("runs", 0, -1)]
    return max(place for place, name in enumerate(runs) if name.startswith(prefix))
