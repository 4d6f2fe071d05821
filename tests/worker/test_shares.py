from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.worker.fairness import Shares

weights = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=1)


@given(weights)
def test_queues_with_work_get_their_share_by_weight(table: dict[str, int]) -> None:
    shares = Shares(table)
    rounds = 50
    turns = Counter(shares.take(table) for _ in range(rounds * sum(table.values())))
    for queue, weight in table.items():
        assert abs(turns[queue] - rounds * weight) <= len(table)


@given(weights)
def test_no_queue_waits_longer_than_its_weight_allows(table: dict[str, int]) -> None:
    shares = Shares(table)
    order = [shares.take(table) for _ in range(10 * sum(table.values()))]
    for queue, weight in table.items():
        longest = -(-sum(table.values()) // weight) + len(table)
        positions = [-1, *(i for i, taken in enumerate(order) if taken == queue)]
        assert all(b - a <= longest for a, b in itertools.pairwise(positions))


@given(weights, st.data())
def test_a_turn_goes_to_a_queue_that_has_work(table: dict[str, int], data: st.DataObject) -> None:
    shares = Shares(table)
    for _ in range(30):
        ready = data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, unique=True))
        assert shares.take(ready) in ready


def test_a_queue_that_had_no_work_does_not_save_up_turns() -> None:
    shares = Shares({"busy": 1, "quiet": 1})
    for _ in range(100):
        shares.take(["busy"])
    turns = [shares.take(["busy", "quiet"]) for _ in range(10)]
    assert 4 <= turns.count("quiet") <= 6


def test_taking_from_no_queue_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        Shares({}).take([])
