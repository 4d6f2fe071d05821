from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.inflight.prefetch import Prefetch
from routing.message.evidence import Evidence
from routing.redis.values import Burial, Fetch, Mark
from routing.topology.model import Topology

TABLE = Topology.load({"queues": {"a": {"prefetch": 5}, "b": {"prefetch": 2}}})


def fetched(holdings: Holdings, *tags: str, queue: str = "a") -> None:
    fetch = Fetch("x:1:", ((queue, len(tags)),))
    holdings.asking(fetch)
    holdings.answered(fetch, [(tag, queue, 10) for tag in tags])


class HoldingsModel(RuleBasedStateMachine):
    """Any order of fetches, endings, returns and lost replies keeps count."""

    def __init__(self) -> None:
        super().__init__()
        self.holdings = Holdings(TABLE)
        self.calls = 0
        self.held: dict[str, str] = {}
        self.ended: list[str] = []
        self.returned: list[str] = []
        self.settled: list[str] = []

    @rule(share=st.floats(0, 1))
    def fetch(self, share: float) -> None:
        asked = tuple(
            (q, self.holdings.credit.of(q)) for q in "ab" if self.holdings.credit.of(q) > 0
        )
        self.calls += 1
        fetch = Fetch(f"x:{self.calls}:", asked)
        self.holdings.asking(fetch)
        assert all(self.holdings.credit.of(q) <= 0 for q, _ in asked)
        arrived = [
            (tag, queue)
            for position, (queue, credit) in enumerate(asked)
            for tag in fetch.tags(position)[: round(credit * share)]
        ]
        self.holdings.answered(fetch, [(tag, queue, 10) for tag, queue in arrived])
        self.held.update(arrived)

    @rule()
    def lose_a_reply(self) -> None:
        self.calls += 1
        fetch = Fetch(f"x:{self.calls}:", (("a", 2),))
        self.holdings.asking(fetch)
        self.holdings.unanswered(fetch)
        self.returned += fetch.tags(0)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ending=st.sampled_from(["done", "failed"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        assert self.holdings.end(tag, ending)
        assert not self.holdings.end(tag, ending)
        self._drop(tag)
        self.ended.append(tag)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        assert self.holdings.requeue(tag)
        self._drop(tag)
        self.returned.append(tag)

    @rule(arrives=st.booleans())
    def settle(self, arrives: bool) -> None:
        settlement = self.holdings.outbox.take_settlement()
        if arrives:
            self.settled += [tag for tags in settlement.groups().values() for tag in tags]
        else:
            self.holdings.outbox.restore_settlement(settlement)

    @rule()
    def lose_the_connection(self) -> None:
        self.holdings.requeue_all(up_to=State.WAITING)
        self.returned += self.held
        self.held.clear()

    def _drop(self, tag: str) -> None:
        del self.held[tag]

    @invariant()
    def counts_are_exact(self) -> None:
        for queue in "ab":
            counted = [tag for tag, of in self.held.items() if of == queue]
            assert self.holdings.credit.held(queue) == len(counted)

    @invariant()
    def every_ending_waits_or_was_settled(self) -> None:
        assert len(self.holdings.outbox) == len(self.ended) - len(self.settled)

    def teardown(self) -> None:
        returns = [entry.tag for _, group in self.holdings.outbox.take_returns() for entry in group]
        assert sorted(returns) == sorted(self.returned)


TestHoldingsModel = HoldingsModel.TestCase
TestHoldingsModel.settings = settings(max_examples=60, deadline=None)


def test_what_was_handed_over_is_kept_when_the_connection_is_lost() -> None:
    holdings = Holdings(TABLE)
    fetched(holdings, "1", "2", "3")
    holdings.mark(["1"], State.STARTED)
    holdings.mark(["2"], State.HANDED)
    assert holdings.requeue_all(up_to=State.WAITING) == 1
    assert holdings.credit.held("a") == 2


def marks_of_returns(holdings: Holdings) -> list[tuple[str, Mark]]:
    return [
        (entry.tag, entry.mark) for _, group in holdings.outbox.take_returns() for entry in group
    ]


def test_what_had_begun_is_marked_and_not_charged_when_all_is_given_back() -> None:
    holdings = Holdings(TABLE)
    fetched(holdings, "1", "2")
    holdings.identify("1", "id-1")
    holdings.identify("2", "id-2")
    holdings.mark(["2"], State.STARTED)
    holdings.requeue_all()
    assert marks_of_returns(holdings) == [("1", Mark.NONE), ("2", Mark.REDELIVERED)]


def test_returns_keep_the_order_of_their_fetch() -> None:
    holdings = Holdings(TABLE)
    fetched(holdings, "1", "2", "3")
    for tag in ("3", "1", "2"):
        holdings.requeue(tag)
    assert [tag for tag, _ in marks_of_returns(holdings)] == ["1", "2", "3"]


def test_a_buried_message_frees_its_credit_and_waits_to_be_carried() -> None:
    holdings = Holdings(TABLE)
    fetched(holdings, "1", "2")
    holdings.identify("1", "id-1")
    assert holdings.bury("1", Evidence(reason="failed"))
    assert not holdings.bury("1", Evidence(reason="failed"))
    assert (holdings.credit.held("a"), len(holdings.outbox)) == (1, 1)
    burials = holdings.outbox.take_burials()
    assert burials == {"a": [Burial("1", '"reason":"failed","queue":"a"}')]}
    assert len(holdings.outbox) == 0
    holdings.outbox.restore_burials(burials)
    assert holdings.outbox.take_burials() == burials


def test_a_queue_that_keeps_no_dead_letters_only_counts_them() -> None:
    holdings = Holdings(Topology.load({"queues": {"a": {"max_dead": 0}}}))
    fetched(holdings, "1", "2")
    holdings.bury("1", Evidence(reason="dead"))
    holdings.bury("2", Evidence(reason="undecodable"))
    groups = holdings.outbox.take_settlement().groups()
    assert groups == {("a", "failed"): ["1"], ("a", "rejected"): ["2"]}
    assert holdings.outbox.take_burials() == {}


def test_a_queue_without_a_prefetch_holds_what_its_batches_need() -> None:
    prefetch = Prefetch(Topology.load({"queues": {"chosen": {"prefetch": 5}, "open": {}}}))
    assert prefetch.of("open") == 32
    prefetch.batch_needs = {"chosen": 300, "open": 300, "elsewhere": 10}
    assert [prefetch.of(q) for q in ("chosen", "open", "elsewhere")] == [5, 300, 32]
    prefetch.change("open", 9)
    assert prefetch.of("open") == 9


def test_a_queue_without_a_prefetch_holds_twice_what_the_slots_run() -> None:
    prefetch = Prefetch(Topology.load({"queues": {"chosen": {"prefetch": 5}, "open": {}}}))
    prefetch.slots = lambda: 16
    assert prefetch.of("open") == 32
    prefetch.slots = lambda: 500
    prefetch.batch_needs = {"batches": 2000}
    assert [prefetch.of(q) for q in ("chosen", "open", "batches")] == [5, 1000, 2000]


def test_a_prefetch_is_changed_for_this_process() -> None:
    holdings = Holdings(TABLE)
    holdings.prefetch.change("a", 9)
    assert holdings.credit.of("a") == 9
    with pytest.raises(ValueError, match="prefetch must be at least 1, got 0"):
        holdings.prefetch.change("a", 0)


def test_a_forked_child_holds_nothing() -> None:
    holdings = Holdings(TABLE)
    fetched(holdings, "1")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, str(holdings.credit.held("a")).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0"
    assert holdings.credit.held("a") == 1
    os.close(reader)
    os.close(writer)


def test_the_messages_of_one_call_may_be_of_several_queues() -> None:
    holdings = Holdings(Topology.load({"queues": {"one": {}, "other": {}}}))
    fetch = Fetch("x:1:", (("one", 1), ("other", 2)))
    holdings.asking(fetch)
    holdings.answered(fetch, [("a", "one", 1), ("b", "other", 1), ("c", "other", 1)])
    for state, counts in ((State.HANDED, (0, 0)), (State.WAITING, (1, 2)), (State.STARTED, (0, 0))):
        holdings.mark(["a", "b", "c"], state)
        assert (holdings.ready.count("one"), holdings.ready.count("other")) == counts
    assert holdings.ready.is_empty
