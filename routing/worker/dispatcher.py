"""From "message received" to "handed to the pool": units of work wait here for a slot.

A unit is one request, or a whole batch. It is handed over only when a slot is free, the queues
taking turns by weight. So what waits here can still be requeued, and what was handed over will
run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery import bootsteps

from routing import upstream
from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.redis.faults import ANY_FAULT, LOST
from routing.redis.values import Mark
from routing.topology.checks import batches_by_queue
from routing.transport.channel import EngineMixin
from routing.transport.message import EngineMessage
from routing.worker.clerk import CLERK
from routing.worker.fairness import Rule, Running, Shares
from routing.worker.gc_tuning import relax_collector, relax_in_pool_processes
from routing.worker.greenlets import let_go
from routing.worker.heap import keep_trimmed
from routing.worker.intake import refused, task_handler
from routing.worker.interruption import holdings_of
from routing.worker.prefork import Pipes
from routing.worker.rates import Rates
from routing.worker.slots import CountedSlots, SemaphoreSlots, Slots
from routing.worker.startup import refuse_stock_redis
from routing.worker.stopping import STOP, Cut
from routing.worker.units import RequestUnit, Unit, UnitSource, WaitingUnits, can_travel

logger = logging.getLogger(__name__)

#: While the leases are in doubt, that often it is seen whether they have been renewed.
LOOK_AGAIN_SECONDS = 0.1


class Dispatcher(bootsteps.StartStopStep):
    """The consumer bootstep that holds units and hands them over."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Dispatcher"

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        consumer.dispatcher = self
        self._consumer = consumer
        self._stock_submit = consumer.on_task_request
        self._channel: EngineMixin | None = None
        self._units = WaitingUnits()
        self._sources: list[UnitSource] = []
        self._slots: Slots | None = None
        self._running = False
        self._pumping = False
        self._thread = threading.get_ident()
        self._shares = Shares({})
        self._inflight: Running | None = None
        self._looks_again = False
        self._handing: Unit | None = None
        consumer.on_task_request = self.submit_request
        consumer.create_task_handler = task_handler(consumer)
        relax_in_pool_processes()
        Rates(consumer, self._units)
        STOP.watch(consumer.controller, self._leave)
        keep_trimmed(consumer.timer)
        super().__init__(consumer, **kwargs)

    # -- life

    def start(self, consumer: Any) -> None:
        """Begin to hand over; called again after each reconnect."""
        channel = consumer.task_consumer.channel
        if not isinstance(channel, EngineMixin):
            refuse_stock_redis(consumer.connection)
            return
        self._channel = channel
        channel.on_refused = partial(refused, consumer.app)
        relax_collector()
        self._thread = threading.get_ident()
        holdings = channel.link.holdings
        channel.runtime.is_worker = holdings.durable = True
        holdings.is_stopping = lambda: STOP.told
        channel.keep_leases(consumer.hostname)
        self._share_out(holdings)
        if consumer.app.conf.worker_disable_prefetch:
            self._fetch_for_free_slots(channel, holdings)
        if self._slots is None:
            self._slots = self._make_slots(consumer)
        else:
            self._slots.reset(
                len(upstream.JOBS.of(upstream.PROCESS_POOL.of(consumer.pool)))
                if consumer.pool.uses_semaphore
                else 0
            )
        self._running = True
        channel.settler.flush()

    def _share_out(self, holdings: Holdings) -> None:
        queues = holdings.topology.queues
        self._shares = Shares({name: queue.weight for name, queue in queues.items()})
        rules = {
            name: Rule(reserve=queue.reserve, limit=queue.limit)
            for name, queue in queues.items()
            if queue.reserve or queue.limit is not None
        }
        if self._inflight is None:
            self._inflight = Running(rules, lambda: self._consumed_queues())

    def _fetch_for_free_slots(self, channel: EngineMixin, holdings: Holdings) -> None:
        """Hold no more than the slots run, as ``--disable-prefetch`` asks for: Celery's own way
        stops the channel, which has endings to carry."""
        consuming: Any = channel
        consuming.qos.__dict__.pop("can_consume", None)
        batches = batches_by_queue(self._consumer.app)
        largest = {queue: max(sizes.values()) for queue, sizes in batches.items()}
        holdings.prefetch.ceiling = lambda queue: self._slots_of(queue) * largest.get(queue, 1)

    def _slots_of(self, queue: str) -> int:
        """Return how many slots a queue has, or may take; also those that would be added for it."""
        if self._slots is None or self._inflight is None:
            return 0
        pool, most = self._consumer.pool, getattr(self._consumer.controller, "max_concurrency", 0)
        free = self._slots.free() + max(0, (most or 0) - int(pool.num_processes))
        waiting = len(self._units) - self._units.count(queue)
        return self._inflight.most(queue, free=max(0, free - waiting))

    def _make_slots(self, consumer: Any) -> Slots:
        # Handed-over work survives a reconnect, so the pool must not forget it.
        consumer.pool.flush = None
        if consumer.pool.uses_semaphore:
            finish = consumer.pool.flush = Pipes(upstream.PROCESS_POOL.of(consumer.pool)).finish
            Cut(consumer, finish)
            return SemaphoreSlots(
                consumer.pool,
                consumer.controller.semaphore,
                on_free=self.pump,
                on_enter=self._unit_entered,
            )
        let_go(consumer.pool)
        return CountedSlots(
            consumer.pool, on_free=self.pump, on_enter=self._unit_entered, soon=self.soon
        )

    def _consumed_queues(self) -> Sequence[str]:
        return self._channel.engine_queues if self._channel is not None else ()

    def stop(self, consumer: Any) -> None:
        """Requeue what was not handed over: the pool is closing, or the connection is lost."""
        self._running = False
        if consumer.blueprint.state != bootsteps.RUN:  # as by remote control, without a signal
            STOP.note()
        self._units.clear()
        for source in self._sources:
            source.clear()
        self._sources.clear()
        if self._channel is None:
            return
        self._channel.link.holdings.requeue_all(up_to=State.WAITING)
        if not self._channel.closed:
            self._channel.fetcher.stand_down()

    def _leave(self) -> None:
        """Say goodbye: what is killed from now on was killed by whoever stops this worker."""
        if self.holdings is not None and self.holdings.keeper is not None:
            self.holdings.keeper.leave()

    def shutdown(self, consumer: Any) -> None:
        """Settle what the pool has ended, requeue the rest."""
        if self._channel is None:
            return
        holdings = self._channel.link.holdings
        CLERK.finish()
        returned = holdings.requeue_all()
        if returned:
            logger.info("requeued %d unfinished messages", returned, extra={"event": "given_back"})
        self._channel.runtime.is_worker = holdings.durable = False
        holdings.dismiss()  # first, as it may have endings in its hands
        if not self._channel.closed:
            self._settle_last(self._channel)

    def _settle_last(self, channel: EngineMixin) -> None:
        try:
            channel.settler.settle_now()
        except (*LOST, ANY_FAULT) as error:
            logger.warning(
                "the broker is away or refuses: what has just ended may run again (%s)",
                error,
                extra={"event": "unsettled_at_exit"},
            )

    # -- for strategies and batches

    @property
    def pool(self) -> Any:
        """The worker's pool."""
        return self._consumer.pool

    @property
    def holdings(self) -> Holdings | None:
        """What this worker holds; None while it is not connected to a broker of the engine."""
        return self._channel.link.holdings if self._channel is not None else None

    def submit_request(self, request: Any) -> None:
        """Take a request from Celery's strategy."""
        if isinstance(request.message, EngineMessage):
            self.submit(RequestUnit(self, request))
        else:
            self._stock_submit(request)

    def submit(self, unit: Unit) -> None:
        """Take a unit; it is handed over when its turn comes and a slot is free."""
        if not self._running:
            return
        self._units.add(unit)
        self.pump()

    def add_source(self, source: UnitSource) -> None:
        """Ask a buffer for work whenever a slot has nothing to do, until the next stop."""
        self._sources.append(source)

    def buffered(self) -> Counter[str]:
        """Return how many messages of each queue wait in a buffer for the rest of their batch."""
        total: Counter[str] = Counter()
        for source in tuple(self._sources):
            total.update(source.waiting())
        return total

    def idle_slots(self, queue: str | None = None) -> int:
        """Return how many slots are free and not spoken for, for a queue or for any."""
        if self._slots is None or self._inflight is None or not self._running:
            return 0
        if not (free := self._slots.free()):
            return 0
        if queue is not None and not self._inflight.eligible([queue], free=free):
            return 0
        return max(0, free - len(self._units))

    def backlog(self, queue: str) -> bool:
        """Return whether more of this queue is on its way, or known to wait at the broker."""
        return self._channel is not None and self._channel.fetcher.backlog(queue)

    def failed(self, unit: Unit) -> None:
        """Requeue a unit that the pool did not take; it comes again later."""
        self.unused_slot()
        self._requeue(unit.requests)

    @staticmethod
    def _requeue(requests: Sequence[Any]) -> None:
        mark = Mark.NONE if STOP.told else Mark.LATER
        for request in requests:
            if (holdings := holdings_of(request.message)) is not None:
                holdings.requeue(request.message.delivery_tag, mark)

    def unused_slot(self) -> None:
        """Release the slot of a unit that turned out to have nothing to run."""
        if self._slots is not None:
            self._slots.release()

    def soon(self, callback: Callable[[], None]) -> None:
        """Run a callback soon in the consumer's loop; safe from any thread, in every pool."""
        hub = self._consumer.hub
        if hub is None:
            self._consumer.timer.call_after(0, callback)
        elif threading.get_ident() == self._thread:
            hub.call_later(0, callback)
        else:
            hub.call_soon(callback)

    # -- handing over

    def pump(self) -> None:
        """Hand over units while slots are free, then ask the buffers for more."""
        if self._pumping or not self._running or self._slots is None:
            return
        if not self._may_start():
            return
        self._pumping = True
        try:
            self._hand_over_while_free(self._slots)
            for source in tuple(self._sources):
                if not self.idle_slots():
                    break
                source.slot_idle()
                self._hand_over_while_free(self._slots)
        finally:
            self._pumping = False

    def _may_start(self) -> bool:
        """Return whether what waits here is known to be ours still; if not, look again soon."""
        if self.holdings is None or self.holdings.lease_guard.holds:
            return True
        if not self._looks_again:
            self._looks_again = True
            self._consumer.timer.call_after(LOOK_AGAIN_SECONDS, self._look_again)
        return False

    def _look_again(self) -> None:
        self._looks_again = False
        self.pump()

    def _hand_over_while_free(self, slots: Slots) -> None:
        assert self._inflight is not None
        while self._units and not STOP.told:
            if not (free := slots.free()):
                slots.await_next()
                return
            if not (eligible := self._inflight.eligible(self._units.queues(), free=free)):
                return
            slots.acquire()
            queue = eligible[0] if len(eligible) == 1 else self._shares.take(eligible)
            self._hand_over(queue, self._units.take(queue))

    def _hand_over(self, queue: str, unit: Unit) -> None:
        for request in unit.requests:
            request.mark(State.HANDED)
        self._handing = unit
        began = time.monotonic()
        try:
            unit.hand_over()
        except Exception as error:
            logger.exception(
                "could not hand over work of queue %r, giving it back",
                queue,
                extra={"event": "hand_over_failed"},
            )
            self.unused_slot()
            stuck = [request for request in unit.requests if not can_travel(request)]
            self._requeue([request for request in unit.requests if request not in stuck])
            for request in stuck:  # trying again would not help
                request.fail_early(error)
        finally:
            self._handing = None
        if self._channel is not None:  # the solo pool has run it by now
            self._channel.fetcher.sightings.held_up(time.monotonic() - began)

    def _unit_entered(self) -> Callable[[], None]:
        assert self._inflight is not None
        unit = self._handing
        if unit is None or not unit.requests:
            return self._inflight.enter("")
        return self._inflight.enter(unit.queue, is_early=not unit.requests[0].task.acks_late)
