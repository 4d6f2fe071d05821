from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.worker.run_times import RunTimes
from routing.worker.running import Running
from routing.worker.shares import Shares

#: Run times that differ a thousandfold.
seconds = st.floats(0.001, 1.0)
weights = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=2)


class Play:
    """Queues that always have work, on a pool of slots; keeps what each was served."""

    def __init__(self, table: Mapping[str, int], slots: int, takes: Callable[[str], float]) -> None:
        self.weights, self._slots, self._takes = table, slots, takes
        self.times = RunTimes()
        self.shares = Shares(table, self.times)
        self.now = self.longest = self.worst = 0.0
        self.served = dict.fromkeys(table, 0.0)
        self._runs: list[tuple[float, float, str]] = []

    def know(self) -> None:
        """Measure a unit of each queue, as a worker has after its first moments."""
        for queue in self.weights:
            self.times.note(queue, "task", self._takes(queue))

    def go(self, units: int) -> None:
        """Run so many units; after each, note who is behind by most."""
        for _ in range(units):
            while len(self._runs) < self._slots:
                queue = self.shares.take(list(self.weights), self.now)
                self.shares.begin(queue, self.now)
                takes = self._takes(queue)
                self.longest = max(self.longest, takes)
                heapq.heappush(self._runs, (self.now + takes, self.now, queue))
            self.now, began, queue = heapq.heappop(self._runs)
            self.times.note(queue, "task", self.now - began)
            self.shares.end(queue, began, self.now - began)
            self.served[queue] += self.now - began
            self.worst = max(self.worst, *map(self.behind, self.weights))

    def behind(self, queue: str) -> float:
        """Return by how many slot seconds a queue is behind its weight."""
        had = dict(self.served)
        for _, began, one in self._runs:
            had[one] += self.now - began
        return sum(had.values()) * self.weights[queue] / sum(self.weights.values()) - had[queue]

    @property
    def total(self) -> float:
        return sum(self.served.values())


@settings(max_examples=80, deadline=None)
@given(weights, st.data())
def test_on_one_slot_nobody_is_ever_behind_by_more_than_one_longest_unit(
    table: dict[str, int], data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(seconds, min_size=20, max_size=20))
    count = iter(range(10_000))
    play = Play(table, 1, lambda queue: drawn[(next(count) * 7 + ord(queue)) % len(drawn)])
    play.go(200)
    assert play.worst <= play.longest + 1e-6


@settings(max_examples=80, deadline=None)
@given(weights, st.integers(1, 4), st.data())
def test_on_several_slots_nobody_is_either_once_run_times_are_measured(
    table: dict[str, int], slots: int, data: st.DataObject
) -> None:
    takes = {queue: data.draw(seconds) for queue in table}
    play = Play(table, slots, takes.__getitem__)
    play.know()
    play.go(300)
    assert play.worst <= max(takes.values()) + 1e-6


@settings(max_examples=50, deadline=None)
@given(weights, st.integers(1, 4), st.data())
def test_shares_of_time_are_those_of_the_weights(
    table: dict[str, int], slots: int, data: st.DataObject
) -> None:
    takes = {queue: data.draw(seconds) for queue in table}
    play = Play(table, slots, takes.__getitem__)
    while play.total < 100 * max(takes.values()):
        play.go(20)
    for queue in table:
        assert abs(play.behind(queue)) / play.total < 0.03


@given(weights, st.data())
def test_a_turn_goes_to_a_queue_that_has_work(table: dict[str, int], data: st.DataObject) -> None:
    shares = Shares(table, RunTimes())
    for now in range(30):
        ready = data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, unique=True))
        queue = shares.take(ready, now)
        assert queue in ready
        shares.begin(queue, now)
        shares.end(queue, now, 1)


def served(shares: Shares, queues: list[str], *, start: float, units: int) -> list[str]:
    """Run so many units of a second, one after the other; returns whose they were."""
    order = []
    for now in range(units):
        queue = shares.take(queues, start + now)
        shares.begin(queue, start + now)
        shares.end(queue, start + now, 1)
        order.append(queue)
    return order


def test_a_queue_that_had_no_work_has_saved_up_nothing() -> None:
    shares = Shares({"busy": 1, "quiet": 1}, RunTimes())
    served(shares, ["busy"], start=0, units=100)
    turns = served(shares, ["busy", "quiet"], start=100, units=10)
    assert 4 <= turns.count("quiet") <= 6


def test_a_queue_that_comes_back_owes_nothing_for_what_nobody_else_wanted() -> None:
    shares = Shares({"first": 1, "second": 1}, RunTimes())
    served(shares, ["first"], start=0, units=100)
    shares.leave("first")
    served(shares, ["second"], start=100, units=10)
    turns = served(shares, ["first", "second"], start=110, units=10)
    assert 4 <= turns.count("first") <= 6


def test_a_queue_that_leaves_while_it_is_ahead_is_ahead_when_it_returns() -> None:
    shares = Shares({"greedy": 1, "other": 1}, RunTimes())
    shares.arrive("other")
    shares.begin("greedy", 0)
    shares.end("greedy", 0, 5)
    shares.leave("greedy")
    assert served(shares, ["greedy", "other"], start=5, units=5) == ["other"] * 5


def test_new_weights_begin_with_nobody_ahead() -> None:
    shares = Shares({"a": 1, "b": 1}, RunTimes())
    served(shares, ["a", "b"], start=0, units=10)
    shares.reweigh({"a": 3, "b": 1}, 10)
    turns = served(shares, ["a", "b"], start=10, units=40)
    assert turns.count("a") == pytest.approx(30, abs=1)


def test_taking_from_no_queue_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        Shares({}, RunTimes()).take([], 0.0)


def test_what_came_while_long_units_ran_goes_before_the_next_of_them() -> None:
    """As many short ones as wait, though each is over before anybody falls behind."""
    shares = Shares({"long": 1, "short": 1}, RunTimes())
    now = 0.0
    for _ in range(5):
        shares.begin(shares.take(["long"], now), now)
        shares.end("long", now, 2)
        now += 2
        for _ in range(40):
            assert shares.take(["long", "short"], now) == "short"
            shares.begin("short", now)
            shares.end("short", now, 0.001)
            now += 0.001
        shares.leave("short")


def test_a_queue_is_charged_for_its_runs_and_not_for_what_surrounds_them() -> None:
    now = 0.0
    times, charges = RunTimes(), RunTimes()
    shares = Shares({}, charges)
    running = Running(times, shares, charges, clock=lambda: now)
    for ran, charged in ((5.0, 5.0), (0.5, 6.0), (None, 6.5)):
        leave = running.enter("q", str(ran))
        now += 6.5
        leave(ran)
        leave(ran)
        assert charges.mean_of("q", str(ran)) == charged
        assert times.mean_of("q", str(ran)) == 6.5, "what a slot is kept for is forecast by"
    assert running.counts["q"] == 0
    assert shares.behind("q", now) == 0
