from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.worker.fairness import Rule, startable

rules = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(Rule, reserve=st.integers(0, 3), limit=st.none() | st.integers(1, 4)),
)


@given(rules, st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 8))
def test_reserves_stay_free_and_limits_hold(
    table: dict[str, Rule], arrivals: list[str], slots: int
) -> None:
    running: dict[str, int] = {}
    for queue in arrivals:
        free = slots - sum(running.values())
        if free and startable(queue, table, free=free, running=running):
            running[queue] = running.get(queue, 0) + 1
    assert sum(running.values()) <= slots
    for queue, rule in table.items():
        if rule.limit is not None:
            assert running.get(queue, 0) <= rule.limit
    for queue in "abcd":
        if not running.get(queue) and slots > sum(running.values()):
            wanted = {q: r for q, r in table.items() if q != queue}
            kept = sum(max(0, r.reserve - running.get(q, 0)) for q, r in wanted.items())
            limit = table[queue].limit if queue in table else None
            free = slots - sum(running.values())
            expected = limit != 0 and (free > kept or (free == slots and free > 0))
            started = startable(queue, table, free=free, running=running)
            assert started or not expected


@given(rules, st.integers(1, 4), st.sampled_from("abcd"))
def test_an_idle_worker_starts_whatever_there_is(
    table: dict[str, Rule], slots: int, queue: str
) -> None:
    assert startable(queue, table, free=slots, running={})


def test_a_reserve_is_lent_to_what_is_known_to_be_shorter_than_it_allows() -> None:
    table = {"urgent": Rule(reserve=1, lend_below=0.05)}

    def may_start(seconds: float | None) -> int:
        return startable("bulk", table, free=1, running={"bulk": 1}, seconds=seconds)

    assert may_start(0.04) == 1
    assert may_start(0.05) == may_start(2.0) == may_start(None) == 0
