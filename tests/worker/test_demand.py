"""What a worker asks for: what its slots can start soon, as far as that was measured."""

from __future__ import annotations

from collections.abc import Callable

from routing.inflight.prefetch import Room
from routing.inflight.ready import Ready
from routing.topology.queue import QueueConfig
from routing.worker.demand import AHEAD_SECONDS, Demand
from routing.worker.scheduler import Scheduler


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
        self._demand = Demand(
            scheduler,
            free=lambda: slots - sum(self.running.counts.values()),
            has_more=lambda queue: queue in self.more,
            unit_sizes=sizes,
        )
        self.gathers = self._demand.gathers

    def knows(self, queue: str, seconds: float) -> None:
        self.times.note(queue, queue, seconds)

    def start(self, queue: str) -> Callable[[], None]:
        return self.running.enter(queue, queue)

    def wait(self, queue: str, count: int) -> None:
        for number in range(count):
            self.ready.add(queue, f"{queue}-{number}")

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
    pool.gathers("rows", 100)
    assert pool.free("rows") == 198
    pool.gathers("rows", 10)
    assert pool.free("rows") == 198, "another task has bigger ones"


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
