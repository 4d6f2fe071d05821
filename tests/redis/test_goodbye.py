"""A worker that says goodbye: what it ran is taken over as from any other, and charged nothing."""

from __future__ import annotations

from tests.support.messages import numbered
from tests.support.rig import Rig


def test_what_a_worker_ran_when_it_said_goodbye_is_charged_nothing(rig: Rig) -> None:
    rig.push(numbered(2))
    arrivals = rig.fetch()
    rig.renew(arrivals, started=True)
    held = [(arrival.tag, "an id") for arrival in arrivals]
    assert rig.commands.renew(rig.client, "w@test", held, leaving=True) == []
    assert not rig.broker.client.exists(rig.keys.records()[4])
    rig.let_leases_run_out(arrivals)
    assert rig.reclaim() == 2
    assert rig.deliveries() == {}


def test_a_goodbye_keeps_the_lease(rig: Rig) -> None:
    rig.push(numbered(2))
    kept, lost = rig.fetch(1), rig.fetch(1)
    rig.let_leases_run_out([*kept, *lost])
    rig.commands.renew(rig.client, "w@test", [(kept[0].tag, "1")], leaving=True)
    assert rig.reclaim() == 1
    assert rig.commands.renew(rig.client, "w@test", [(lost[0].tag, "")], leaving=True) == [
        lost[0].tag
    ]
