from __future__ import annotations

from tests.support.messages import numbered
from tests.support.rig import Rig


def test_a_purge_drops_what_waits_of_all_priorities_and_counts_it(rig: Rig) -> None:
    for priority in (0, 3, 6, 9):
        rig.push(numbered(2), priority=priority)
    assert rig.purge() == 8
    assert rig.broker.length("q") == 0
    assert rig.broker.ledger("q") == {"accepted": 8, "purged": 8}


def test_a_purge_leaves_what_is_unacknowledged_and_other_queues(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.push(numbered(2, queue="other"), "other")
    rig.fetch(1)
    assert rig.purge() == 2
    assert rig.broker.unacked("q") == 1
    assert rig.broker.length("other") == 2


def test_a_purged_queue_has_no_bell(rig: Rig) -> None:
    rig.push(numbered(3))
    rig.purge()
    assert rig.bells() == 0


def test_purging_an_empty_queue_counts_nothing(rig: Rig) -> None:
    assert rig.purge() == 0
    assert rig.broker.ledger("q") == {}
