"""What a worker asks for: what its slots can start soon, as far as that was measured."""

from __future__ import annotations

from collections.abc import Callable

from routing.inflight.prefetch import Room
from routing.inflight.ready import Ready
from routing.topology.queue import QueueConfig
from routing.worker.demand import AHEAD_SECONDS, Demand
from routing.worker.scheduler import Scheduler
from routing.worker.unit_sizes import UnitSizes


class Pool:
    """Slots whose clock the test moves."""

    def __init__(
        self,
        slots: int,
        *,
        table: dict[str, QueueConfig] | None = None,
        weights: dict[str, int] | None = None,
        **sizes: int,
    ) -> None:
        self.now = 0.0
        self.more: set[str] = set()
        self.ready = Ready()
        queues = table or {q: QueueConfig(weight=w) for q, w in (weights or {}).items()}
        scheduler = Scheduler(lambda: list(queues), lambda queue: False, clock=lambda: self.now)
        scheduler.configure(queues)
        self.times, self.running = scheduler.times, scheduler.running
        #: Messages that wait in a batch which others may join.
        self.joining: dict[str, int] = {}
        self._demand = Demand(
            scheduler,
            free=lambda: slots - sum(self.running.counts.values()),
            has_more=lambda queue: queue in self.more,
            sizes=UnitSizes(sizes, {queue: ("batch", size) for queue, size in sizes.items()}),
            gathered=lambda: self.joining,
        )
        self.sizes = self._demand.sizes

    def knows(self, queue: str, seconds: float) -> None:
        self.times.note(queue, queue, seconds)

    def start(self, queue: str) -> Callable[[], None]:
        return self.running.enter(queue, queue)

    def wait(self, queue: str, count: int) -> None:
        for _ in range(count):
            self.ready.arrived([queue])

    def rooms(self, *queues: str) -> tuple[dict[str, Room], int]:
        return self._demand.rooms(queues, self.ready)

    def free(self, queue: str, *others: str) -> int:
        return self.rooms(queue, *others)[0][queue].free


def test_before_anything_is_measured_each_slot_asks_for_one() -> None:
    assert Pool(4).free("new") == 4


def test_short_work_is_asked_for_by_what_can_start_within_some_milliseconds() -> None:
    pool = Pool(2)
    pool.knows("short", AHEAD_SECONDS / 10)
    assert pool.free("short") == 2 * 11
    pool.wait("short", 5)
    assert pool.free("short") == 2 * 11 - 5


def test_nothing_is_asked_for_while_the_slots_run_long_work() -> None:
    pool = Pool(2)
    pool.knows("long", 2.0)
    for _ in range(2):
        pool.start("long")
    assert pool.free("long", "short") <= 0


def test_work_is_asked_for_shortly_before_a_slot_is_expected_to_be_free() -> None:
    pool = Pool(1)
    pool.knows("long", 2.0)
    pool.start("long")
    pool.now = 2.0 - 2 * AHEAD_SECONDS
    assert pool.free("long") == 0
    pool.now = 2.0 - AHEAD_SECONDS / 2
    assert pool.free("long") == 1
    pool.now = 2.0 + 2 * AHEAD_SECONDS
    assert pool.free("long") == 0, "it takes longer than expected, nobody knows how long"


def test_slots_that_waiting_work_will_keep_are_asked_for_again_only_by_an_earlier_turn() -> None:
    pool = Pool(2, weights={"urgent": 8})
    pool.knows("long", 2.0)
    pool.wait("long", 2)
    rooms, places = pool.rooms("urgent", "long", "later")
    assert [rooms[queue].free for queue in ("urgent", "long", "later")] == [2, 0, 0]
    assert places == 2


def test_short_work_that_waits_keeps_nobody_from_asking() -> None:
    pool = Pool(2)
    pool.knows("short", 0.001)
    pool.wait("short", 20)
    assert pool.free("urgent", "short") == 2


def test_a_batch_queue_asks_for_a_batch_a_slot() -> None:
    pool = Pool(2, rows=500)
    assert pool.free("rows") == 1_000
    pool.knows("rows", 2.0)
    pool.start("rows")
    pool.start("rows")
    pool.wait("rows", 100)
    assert pool.free("rows") == 400, "one batch fills while others run"
    assert pool.rooms("rows")[0]["rows"].per_slot == 500


def test_a_queue_that_turns_out_to_have_batches_asks_for_a_batch_a_slot() -> None:
    pool = Pool(2)
    pool.wait("rows", 2)
    assert pool.free("rows") == 0
    pool.sizes.gathers("rows", 100, "big", is_keyed=False)
    pool.sizes.came("rows", 200, batched=True)
    assert pool.free("rows") == 198
    pool.sizes.gathers("rows", 10, "small", is_keyed=False)
    assert pool.free("rows") == 198, "another task has bigger ones"


def test_plain_work_takes_a_slot_each_also_where_batches_may_come() -> None:
    pool = Pool(2)
    pool.sizes.gathers("mixed", 60, "batch", is_keyed=False)
    pool.knows("mixed", 2.0)
    assert pool.free("mixed") == 2
    pool.start("mixed")
    pool.start("mixed")
    assert pool.free("mixed") == 0, "no batch is known to fill while they run"


def test_a_batch_that_gathers_beside_plain_work_asks_for_as_many_again() -> None:
    pool = Pool(2)
    pool.sizes.gathers("mixed", 60, "batch", is_keyed=False)
    pool.knows("mixed", 2.0)
    for _ in range(2):
        pool.start("mixed")
    pool.wait("mixed", 8)
    pool.joining["mixed"] = 8
    assert pool.free("mixed") == 8
    pool.wait("mixed", 48)
    pool.joining["mixed"] = 56
    assert pool.free("mixed") == 4, "then it is full"
    pool.wait("mixed", 3)
    assert pool.free("mixed") == 1, "plain ones have come instead"


def test_a_limit_counts_calls_by_messages_that_are_surely_in_one() -> None:
    sizes = UnitSizes({"rows": 60, "both": 60}, {"rows": ("load", 60)})
    assert (sizes.of_call("rows"), sizes.of_call("both"), sizes.of_call("plain")) == (60, 1, 1)
    sizes.gathers("rows", 60, "load", is_keyed=False)
    assert sizes.of_call("rows") == 60
    sizes.gathers("rows", 60, "other", is_keyed=False)
    assert sizes.of_call("rows") == 1


def test_a_plain_message_shows_that_a_queue_is_not_for_batches_alone() -> None:
    sizes = UnitSizes({"rows": 60}, {"rows": ("load", 60)})
    sizes.came("rows", 60, batched=True)
    assert (sizes.of_call("rows"), sizes.is_mixed("rows")) == (60, False)
    sizes.came("rows", 1, batched=False)
    assert (sizes.of_call("rows"), sizes.is_mixed("rows")) == (1, True)


def test_a_reserve_is_not_lent_once_a_run_has_shown_that_it_is_long() -> None:
    pool = Pool(3, table={"urgent": QueueConfig(reserve=1, lend_below=0.05)})
    pool.knows("bulk", 0.04)
    pool.start("other")
    pool.start("bulk")
    assert pool.free("bulk", "urgent") == 1
    pool.now = 1.0
    assert pool.free("bulk", "urgent") == 0


def test_a_reserved_slot_is_asked_for_by_its_own_queue_only() -> None:
    pool = Pool(2, table={"urgent": QueueConfig(reserve=1)})
    pool.knows("bulk", 2.0)
    pool.start("bulk")
    assert pool.free("bulk", "urgent") == 0
    assert pool.free("urgent", "bulk") == 1


def test_a_reserve_is_lent_to_a_queue_whose_work_is_short() -> None:
    pool = Pool(2, table={"urgent": QueueConfig(reserve=1, lend_below=0.05)})
    pool.knows("short", 0.04)
    pool.knows("long", 0.06)
    pool.start("other")
    assert pool.free("short", "urgent") == 1
    assert pool.free("long", "urgent") == 0


def test_a_unit_keeps_its_slot_until_it_has_left_the_pool() -> None:
    pool = Pool(1)
    leave = pool.start("bulk")
    assert pool.running.counts["bulk"] == 1
    pool.now = 3.0
    leave()
    leave()
    assert pool.running.counts["bulk"] == 0
    assert pool.times.mean("bulk") == 3.0


def test_long_work_is_left_while_short_work_whose_turn_is_first_has_more_to_come() -> None:
    pool = Pool(2)
    pool.knows("bulk", 2.0)
    pool.knows("urgent", 0.001)
    for _ in range(2):
        leave = pool.start("bulk")
        pool.now += 2.0
        leave()
    pool.wait("urgent", 3)
    assert pool.free("bulk", "urgent") == 2
    pool.more.add("urgent")
    assert pool.free("bulk", "urgent") == 0
