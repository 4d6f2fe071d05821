"""What waits for its batch comes out once, in order, and within every bound."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batching.consumer.flush import FlushReason, Limits
from batching.consumer.sizes import Window
from batching.consumer.window import Buffer

MAX_SIZE, MAX_BYTES, MAX_WAIT, MAX_COST = 4, 100, 1.0, 10.0


def buffer(max_size: int = MAX_SIZE, max_bytes: int | None = MAX_BYTES) -> Buffer[str, int]:
    return Buffer(Limits(max_size=max_size, max_bytes=max_bytes, max_wait_seconds=MAX_WAIT))


def turns(windows: list[Window[str, int]]) -> list[tuple[list[int], FlushReason | None]]:
    return [(list(window.entries), window.reason) for window in windows]


def test_a_batch_gets_its_turn_as_soon_as_it_is_full() -> None:
    waiting = buffer(max_size=2)
    assert waiting.add(1, "a", size_bytes=1, now=0.0) == []
    assert turns(waiting.add(2, "a", size_bytes=1, now=0.0)) == [([1, 2], FlushReason.COUNT)]
    assert not waiting


def test_an_item_that_does_not_fit_any_more_sends_the_others_on_their_way() -> None:
    waiting = buffer()
    waiting.add(1, "a", size_bytes=60, now=0.0)
    assert turns(waiting.add(2, "a", size_bytes=60, now=0.0)) == [([1], FlushReason.BYTES)]
    assert len(waiting) == 1


def test_what_is_withdrawn_leaves_a_turn_that_it_had_empty() -> None:
    waiting = buffer()
    for entry in (1, 2):
        waiting.add(entry, "a", size_bytes=1, now=0.0)
    window = waiting.next_due(MAX_WAIT, idle=lambda _: False, backlog=lambda _: False)
    assert window is not None
    waiting.add(3, "b", size_bytes=1, now=0.0)
    assert waiting.withdraw() == [1, 2, 3]
    assert not waiting
    assert waiting.close(window) == []
    waiting.add(4, "a", size_bytes=1, now=0.0)
    assert len(waiting) == 1


def test_an_item_bigger_than_any_batch_goes_alone() -> None:
    waiting = buffer()
    waiting.add(1, "a", size_bytes=10, now=0.0)
    packed = waiting.add(2, "a", size_bytes=5_000, now=0.0)
    assert [one.entries for one in packed] == [[1], [2]]


def test_groups_do_not_mix() -> None:
    waiting = buffer(max_size=2)
    waiting.add(1, "a", size_bytes=1, now=0.0)
    assert waiting.add(2, "b", size_bytes=1, now=0.0) == []
    assert turns(waiting.add(3, "a", size_bytes=1, now=0.0)) == [([1, 3], FlushReason.COUNT)]


def test_an_idle_slot_takes_the_oldest_group_that_expects_no_more() -> None:
    waiting = buffer()
    waiting.add(1, "busy", size_bytes=1, now=0.0)
    waiting.add(2, "quiet", size_bytes=1, now=0.1)
    window = waiting.next_due(0.2, idle=lambda _: True, backlog=lambda group: group == "busy")
    assert window is not None
    assert turns([window]) == [([2], FlushReason.IDLE)]


def due(waiting: Buffer[str, int], now: float) -> Window[str, int] | None:
    return waiting.next_due(now, idle=lambda _: False, backlog=lambda _: False)


def test_what_arrives_while_a_batch_waits_for_its_slot_joins_it() -> None:
    waiting = buffer()
    waiting.add(1, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    assert waiting.add(2, "a", size_bytes=1, now=1.5) == []
    assert waiting.deadline() is None, "it has its turn, so nobody needs to ask again"
    assert waiting.close(window) == [1, 2]


def test_what_arrives_after_the_slot_was_there_is_the_next_batch() -> None:
    waiting = buffer()
    waiting.add(1, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    waiting.close(window)
    waiting.add(2, "a", size_bytes=1, now=1.5)
    assert waiting.close(window) == [1]
    assert waiting.deadline() == 1.5 + MAX_WAIT


def test_a_batch_that_grew_full_while_it_waited_keeps_its_one_turn() -> None:
    waiting = buffer(max_size=2)
    waiting.add(1, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    assert waiting.add(2, "a", size_bytes=1, now=1.5) == []
    assert waiting.add(3, "a", size_bytes=1, now=1.6) == []
    assert waiting.close(window) == [1, 2]
    assert len(waiting) == 1


def test_a_batch_may_wait_once_more_for_what_is_on_its_way() -> None:
    waiting = buffer(max_size=2)
    waiting.add(1, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    waiting.add(9, "b", size_bytes=1, now=MAX_WAIT)
    assert waiting.reopen(window, until=MAX_WAIT + 0.01)
    assert waiting.deadline() == MAX_WAIT + 0.01
    assert due(waiting, MAX_WAIT) is None
    assert due(waiting, MAX_WAIT + 0.01) is window
    assert not waiting.reopen(window, until=5.0), "once"


def test_a_batch_that_waits_once_more_goes_as_soon_as_it_is_full() -> None:
    waiting = buffer(max_size=2)
    waiting.add(1, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    assert waiting.reopen(window, until=9.0)
    assert turns(waiting.add(2, "a", size_bytes=1, now=1.1)) == [([1, 2], FlushReason.COUNT)]
    assert not waiting.reopen(window, until=9.0), "it is full"
    assert waiting.deadline() is None


def test_clearing_forgets_everything() -> None:
    waiting = buffer()
    waiting.add(1, "a", size_bytes=1, now=0.0)
    waiting.add(2, "b", size_bytes=1, now=0.5)
    assert due(waiting, MAX_WAIT) is not None
    assert waiting.clear() == [1, 2]
    assert waiting.deadline() is None
    assert waiting.next_due(99.0, idle=lambda _: True, backlog=lambda _: False) is None


@dataclass
class Arrival:
    at: float
    size: int
    cost: float


class BufferMachine(RuleBasedStateMachine):
    """Adds, waits, and slots that fall idle or free in any order, as the strategy would do them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        limits = Limits(
            max_size=MAX_SIZE, max_bytes=MAX_BYTES, max_wait_seconds=MAX_WAIT, max_cost=MAX_COST
        )
        self.waiting: Buffer[str, int] = Buffer(limits)
        self.arrivals: dict[int, Arrival] = {}
        self.added: dict[str, list[int]] = defaultdict(list)
        self.turns: list[Window[str, int]] = []
        self.out: dict[str, list[int]] = defaultdict(list)

    @rule(
        group=st.sampled_from("abc"),
        size=st.integers(0, 150),
        cost=st.floats(0.0, 6.0),
        left=st.none() | st.floats(0.0, 2.0),
        at_once=st.sampled_from([None, None, None, FlushReason.URGENT]),
    )
    def an_item_arrives(
        self, group: str, size: int, cost: float, left: float | None, at_once: FlushReason | None
    ) -> None:
        number = len(self.arrivals)
        self.arrivals[number] = Arrival(self.now, size, cost)
        self.added[group].append(number)
        due_at = None if left is None else self.now + left
        for window in self.waiting.add(
            number,
            group,
            size_bytes=size,
            cost=cost,
            now=self.now,
            due_at=due_at,
            at_once=at_once,
        ):
            self.give_turn(window)
        assert at_once is None or number not in self.without_turn(group)

    @rule(seconds=st.floats(0.0, 1.5))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        # The strategy's timer fires at the deadline.
        while (deadline := self.waiting.deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            while window := due(self.waiting, self.now):
                self.give_turn(window)
        self.now = until

    @rule(busy=st.sets(st.sampled_from("abc")))
    def a_slot_is_idle(self, busy: set[str]) -> None:
        window = self.waiting.next_due(self.now, idle=lambda _: True, backlog=busy.__contains__)
        if window is None:
            assert set(self.groups_without_turn()) <= busy
            return
        self.give_turn(window)

    @precondition(lambda self: self.turns)
    @rule(more=st.booleans())
    def a_slot_is_free(self, more: bool) -> None:
        window = self.turns.pop(0)
        if more and self.waiting.reopen(window, until=self.now + 0.01):
            assert len(window.entries) < MAX_SIZE
            return
        entries = list(self.waiting.close(window))
        assert 1 <= len(entries) <= MAX_SIZE
        size = sum(self.arrivals[number].size for number in entries)
        assert size <= MAX_BYTES or len(entries) == 1
        cost = sum(self.arrivals[number].cost for number in entries)
        assert cost <= MAX_COST or len(entries) == 1
        self.out[window.group] += entries

    def give_turn(self, window: Window[str, int]) -> None:
        assert window not in self.turns, "one turn for each batch"
        waited = self.now - self.arrivals[window.entries[0]].at
        assert waited <= MAX_WAIT + 1e-9 or window.reopened
        assert self.now <= window.due_at + 1e-9
        self.turns.append(window)

    def groups_without_turn(self) -> list[str]:
        return [group for group in self.added if self.without_turn(group)]

    def without_turn(self, group: str) -> set[int]:
        with_turn = {number for window in self.turns for number in window.entries}
        return set(self.added[group][len(self.out[group]) :]) - with_turn

    @invariant()
    def nothing_is_lost_repeated_or_reordered(self) -> None:
        for group, numbers in self.added.items():
            assert numbers[: len(self.out[group])] == self.out[group]

    @invariant()
    def at_most_one_batch_of_a_group_waits_that_is_not_full(self) -> None:
        sizes = list(self.waiting.sizes())
        assert len(dict(sizes)) == len(sizes)
        assert all(0 < size < MAX_SIZE for _, size in sizes)

    @invariant()
    def what_waits_has_its_turn_or_a_deadline(self) -> None:
        assert (self.waiting.deadline() is not None) == bool(self.groups_without_turn())

    def teardown(self) -> None:
        while self.turns:
            self.a_slot_is_free(more=False)
        rest = self.waiting.clear()
        everything = sorted(number for numbers in self.out.values() for number in numbers)
        assert sorted(everything + rest) == list(range(len(self.arrivals)))


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(sizes=st.lists(st.integers(1, 300), max_size=60))
def test_without_a_bound_in_bytes_only_the_count_matters(sizes: list[int]) -> None:
    waiting = buffer(max_bytes=None)
    out = [
        window.entries
        for number, size in enumerate(sizes)
        for window in waiting.add(number, "a", size_bytes=size, now=0.0)
    ]
    assert all(len(entries) == MAX_SIZE for entries in out)
    assert len(waiting) == len(sizes) % MAX_SIZE


def in_one_line(max_size: int = MAX_SIZE) -> Buffer[str, int]:
    limits = Limits(max_size=max_size, max_bytes=None, max_wait_seconds=MAX_WAIT)
    return Buffer(limits, line_of=lambda group: "q")


def given_turns(waiting: Buffer[str, int], now: float) -> dict[str, Window[str, int]]:
    """Give all that is due its turn."""
    found = {}
    while (window := due(waiting, now)) is not None:
        waiting.has_turn(window, now)
        found[window.group] = window
    return found


def test_a_slot_takes_the_fullest_of_those_whose_turn_has_come() -> None:
    waiting = in_one_line()
    for entry, group in enumerate("abcabb"):
        waiting.add(entry, group, size_bytes=1, now=0.0)
    windows = given_turns(waiting, MAX_WAIT)
    assert list(windows) == ["a", "b", "c"]
    assert waiting.choose(windows["a"], MAX_WAIT) is windows["b"]
    waiting.add(9, "a", size_bytes=1, now=MAX_WAIT)
    waiting.add(9, "a", size_bytes=1, now=MAX_WAIT)  # it is full, and nothing more joins
    assert waiting.choose(windows["c"], MAX_WAIT) is windows["a"]
    assert waiting.close(windows["a"]) == [0, 3, 9, 9]
    assert waiting.choose(windows["c"], MAX_WAIT) is windows["b"]


def test_one_that_has_waited_for_its_slot_for_long_goes_before_fuller_ones() -> None:
    waiting = in_one_line()
    waiting.add(1, "first", size_bytes=1, now=0.0)
    first = given_turns(waiting, MAX_WAIT)["first"]
    for entry in (2, 3, 4):
        waiting.add(entry, "second", size_bytes=1, now=MAX_WAIT)
    second = given_turns(waiting, 2 * MAX_WAIT)["second"]
    assert waiting.choose(second, 2 * MAX_WAIT) is second
    assert waiting.choose(second, 2.1 * MAX_WAIT) is first


def test_an_idle_slot_takes_the_fullest_of_what_gathers() -> None:
    waiting = in_one_line()
    for entry, group in enumerate("abb"):
        waiting.add(entry, group, size_bytes=1, now=0.0)
    window = waiting.next_due(0.1, idle=lambda _: True, backlog=lambda _: False)
    assert window is not None
    assert turns([window]) == [([1, 2], FlushReason.IDLE)]


def test_a_look_asks_once_however_many_groups_gather() -> None:
    waiting = in_one_line()
    for entry in range(5_000):
        waiting.add(entry, f"group {entry}", size_bytes=1, now=0.0)
    asked: list[str] = []

    def idle(group: str) -> bool:
        asked.append(group)
        return True

    assert waiting.next_due(0.5, idle=idle, backlog=lambda _: True) is None
    assert len(asked) == 1


def test_what_is_lost_while_it_waits_for_its_slot_takes_none_from_others() -> None:
    waiting = in_one_line(max_size=2)
    full = [
        *waiting.add(1, "a", size_bytes=1, now=0.0),
        *waiting.add(2, "a", size_bytes=1, now=0.0),
    ]
    waiting.has_turn(full[0], 0.0)
    waiting.add(3, "b", size_bytes=1, now=0.0)
    other = given_turns(waiting, MAX_WAIT)["b"]
    assert waiting.drop(lambda entry: entry in (1, 2), lambda entry: (1, 0.0)) == full
    assert waiting.choose(other, MAX_WAIT) is other
    assert waiting.close(other) == [3]


def test_one_key_more_than_may_gather_gives_the_fullest_its_turn() -> None:
    limits = Limits(max_size=9, max_bytes=None, max_wait_seconds=MAX_WAIT, max_open_keys=2)
    waiting: Buffer[str, int] = Buffer(limits, line_of=lambda group: "q")
    for entry, group in enumerate("abb"):
        assert waiting.add(entry, group, size_bytes=1, now=0.0) == []
    (window,) = waiting.add(3, "c", size_bytes=1, now=0.1)
    assert turns([window]) == [([1, 2], FlushReason.KEYS)]
    assert waiting.add(4, "b", size_bytes=1, now=0.2) == [], "it joins while that waits for a slot"
    assert waiting.close(window) == [1, 2, 4]


def test_an_urgent_item_gives_its_batch_its_turn_and_the_next_slot() -> None:
    waiting = in_one_line()
    for entry in (1, 2, 3):
        waiting.add(entry, "bulk", size_bytes=1, now=0.0)
    bulk = given_turns(waiting, MAX_WAIT)["bulk"]
    waiting.add(4, "urgent", size_bytes=1, now=MAX_WAIT)
    (window,) = waiting.add(5, "urgent", size_bytes=1, now=MAX_WAIT, at_once=FlushReason.URGENT)
    waiting.has_turn(window, MAX_WAIT)
    assert waiting.choose(bulk, MAX_WAIT) is window
    assert waiting.close(window) == [4, 5]
    assert waiting.choose(bulk, MAX_WAIT) is bulk


def test_a_batch_does_not_wait_past_the_time_of_an_item_that_expires() -> None:
    waiting = in_one_line()
    waiting.add(1, "a", size_bytes=1, now=0.0)
    waiting.add(2, "b", size_bytes=1, now=0.1)
    waiting.add(3, "b", size_bytes=1, now=0.2, due_at=0.4)
    assert waiting.deadline() == 0.4
    assert due(waiting, 0.3) is None
    window = due(waiting, 0.4)
    assert window is not None
    assert turns([window]) == [([2, 3], FlushReason.WAIT)]
    assert waiting.deadline() == MAX_WAIT


def test_an_idle_slot_takes_a_group_that_has_min_size_though_the_oldest_has_not() -> None:
    limits = Limits(max_size=9, max_bytes=None, max_wait_seconds=MAX_WAIT, min_size=2)
    waiting: Buffer[str, int] = Buffer(limits, line_of=lambda group: "q")
    for entry, group in enumerate("abb"):
        waiting.add(entry, group, size_bytes=1, now=0.0)
    window = waiting.next_due(0.1, idle=lambda _: True, backlog=lambda _: False)
    assert window is not None
    assert turns([window]) == [([1, 2], FlushReason.IDLE)]
    assert waiting.next_due(0.1, idle=lambda _: True, backlog=lambda _: False) is None


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_that_is_shared_out_is_divided_in_order_and_evenly(count: int, parts: int) -> None:
    waiting = buffer(max_size=20)
    for entry in range(count):
        waiting.add(entry, "a", size_bytes=1, now=0.0)
    window = due(waiting, MAX_WAIT)
    assert window is not None
    waiting.close(window)
    rest = waiting.split(window, min(parts, count), MAX_WAIT)
    entries = [window.entries, *(part.entries for part in rest)]
    assert [entry for some in entries for entry in some] == list(range(count))
    assert len(entries) == min(parts, count)
    assert max(map(len, entries)) - min(map(len, entries)) <= 1
    assert all(part.is_part and part.reason is window.reason for part in rest)
