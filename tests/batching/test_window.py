"""What waits for its batch comes out once, in order, and within every bound."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batching.consumer.window import Buffer, FlushReason, Limits, Window

MAX_SIZE, MAX_BYTES, MAX_WAIT = 4, 100, 1.0


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


class BufferMachine(RuleBasedStateMachine):
    """Adds, waits, and slots that fall idle or free in any order, as the strategy would do them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: Buffer[str, int] = buffer()
        self.arrivals: dict[int, Arrival] = {}
        self.added: dict[str, list[int]] = defaultdict(list)
        self.turns: list[Window[str, int]] = []
        self.out: dict[str, list[int]] = defaultdict(list)

    @rule(group=st.sampled_from("abc"), size=st.integers(0, 150))
    def an_item_arrives(self, group: str, size: int) -> None:
        number = len(self.arrivals)
        self.arrivals[number] = Arrival(self.now, size)
        self.added[group].append(number)
        for window in self.waiting.add(number, group, size_bytes=size, now=self.now):
            self.give_turn(window)

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
        self.out[window.group] += entries

    def give_turn(self, window: Window[str, int]) -> None:
        assert window not in self.turns, "one turn for each batch"
        waited = self.now - self.arrivals[window.entries[0]].at
        assert waited <= MAX_WAIT + 1e-9 or window.reopened
        assert self.now <= window.due_at + 1e-9
        self.turns.append(window)

    def groups_without_turn(self) -> list[str]:
        with_turn = {number for window in self.turns for number in window.entries}
        return [
            group
            for group, numbers in self.added.items()
            if set(numbers[len(self.out[group]) :]) - with_turn
        ]

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
