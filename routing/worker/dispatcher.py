"""From "message received" to "handed to the pool": units of work wait here for a slot.

A unit is one request, or a whole batch. It is handed over only when a slot is free, the queues
having their turns by weight. So what waits here can still be requeued, and what was handed over
will run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from celery import bootsteps

from routing.inflight.held import State
from routing.inflight.holdings import Holdings
from routing.redis.faults import ANY_FAULT, LOST
from routing.redis.values import Mark
from routing.topology.checks import largest_batches, limited_batches, only_batches
from routing.topology.limits import limits_text
from routing.topology.queue import QueueConfig
from routing.transport.channel import EngineMixin
from routing.transport.message import EngineMessage
from routing.transport.wakeup import Wakeup
from routing.worker.clerk import CLERK
from routing.worker.demand import Demand
from routing.worker.gc_tuning import relax_collector, relax_in_pool_processes
from routing.worker.heap import keep_trimmed
from routing.worker.intake import refused, task_handler
from routing.worker.interruption import holdings_of, mark
from routing.worker.live import follow_settings
from routing.worker.make_slots import growth_of, slots_of
from routing.worker.rates import Rates
from routing.worker.running import Leave
from routing.worker.scheduler import AHEAD_SECONDS, YIELD_SECONDS, Scheduler
from routing.worker.slots import Slots
from routing.worker.startup import refuse_stock_redis
from routing.worker.stopping import STOP
from routing.worker.unit_sizes import UnitSizes
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
        self._slots: Slots | None = None
        self._running = self._pumping = False
        self._thread = threading.get_ident()
        self.sizes = UnitSizes({}, {})
        soon_free = Wakeup(self._make_room, self._loop)
        self._scheduler = Scheduler(
            self._consumed_queues,
            self._has_work,
            on_free=self._make_room,
            on_soon_free=soon_free.within,
        )
        self._again = Wakeup(self.pump, self._loop)
        self._stuck = 0
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
        follow_settings(self, channel, self._consumer.app.amqp.queues.consume_from)
        self._fetch_what_can_start(channel, holdings)
        if self._slots is None:
            self._slots = slots_of(
                consumer, on_free=self.pump, on_enter=self._unit_entered, soon=self.soon
            )
        else:
            self._slots.reset()
        self._running = True
        channel.settler.flush()

    def share_out(self, queues: Mapping[str, QueueConfig]) -> None:
        """Share the slots by what the queues' entries say from now on."""
        self._scheduler.configure(queues)

    def _fetch_what_can_start(self, channel: EngineMixin, holdings: Holdings) -> None:
        """Fetch for the slots that are free soon; with ``--disable-prefetch``, that are free:
        Celery's own way stops the channel, which has endings to carry."""
        cast("Any", channel).qos.__dict__.pop("can_consume", None)
        app, limits = self._consumer.app, channel.runtime.topology.limits
        self.sizes = UnitSizes(largest_batches(app, holdings.prefetch.of), only_batches(app))
        holdings.prefetch.demand = Demand(
            self._scheduler,
            free=lambda: self._free() + growth_of(self._consumer),
            has_more=lambda queue: channel.fetcher.sightings.known(queue) > 0,
            sizes=self.sizes,
            gathered=self._units.buffered,
            limits_text=limits_text(limits, limited_batches(app, limits)) if limits else "",
            ahead_seconds=0.0 if app.conf.worker_disable_prefetch else AHEAD_SECONDS,
        )
        holdings.ready.may_return = lambda: not growth_of(self._consumer)

    def _free(self) -> int:
        return self._slots.free() if self._slots is not None else 0

    def _loop(self) -> Any:
        connection = self._channel.connection if self._channel is not None else None
        return None if connection is None else connection.loop

    def _consumed_queues(self) -> Sequence[str]:
        return self._channel.engine_queues if self._channel is not None else ()

    def _has_work(self, queue: str) -> bool:
        channel = self._channel
        if channel is None:
            return False
        is_ready = channel.link.holdings.ready.count(queue) > 0
        return is_ready or channel.fetcher.sightings.may_have(queue)

    def stop(self, consumer: Any) -> None:
        """Requeue what was not handed over: the pool is closing, or the connection is lost."""
        self._running = False
        if consumer.blueprint.state != bootsteps.RUN:  # as by remote control, without a signal
            STOP.note()
        self._units.clear()
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
            if request.is_limited:
                request.limit(is_limited=False)
            self.submit(RequestUnit(self, request))
        else:
            self._stock_submit(request)

    def submit(self, unit: Unit) -> bool:
        """Take a unit, unless nothing is handed over now; it goes when it has a slot."""
        if not self._running or self._channel is None:
            return False
        self._units.add(unit)
        self._channel.link.holdings.has_turn(unit.queue)
        self._scheduler.shares.arrive(unit.queue)
        if isinstance(unit, RequestUnit):
            self.sizes.came(unit.queue, 1, batched=False)
        self.pump()
        return True

    def add_source(self, source: UnitSource) -> None:
        """Ask a buffer for work whenever a slot has nothing to do, until the next stop."""
        self._units.sources.append(source)

    def buffered(self) -> Mapping[str, int]:
        """Return how many messages of each queue wait in a buffer for the rest of their batch."""
        return self._units.buffered()

    def idle_slots(self, queue: str = "", task: str = "") -> int:
        """Return how many slots are free and not spoken for: for a task of a queue, or for any."""
        if not self._running or not (free := self._free()):
            return 0
        if queue and (rules := self._scheduler.rules()):
            entering = self._handing
            free = self._scheduler.may_take(queue, task, free=free, rules=rules, entering=entering)
        return max(0, free - len(self._units))

    def backlog(self, queue: str) -> bool:
        """Return whether more of this queue is on its way, or known to wait at the broker."""
        return self._channel is not None and self._channel.fetcher.outlook.backlog(queue)

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
        slots, channel = self._slots, self._channel
        if self._pumping or not self._running or slots is None or channel is None:
            return
        if not self._may_start(channel.link.holdings):
            return
        self._pumping = True
        try:
            self._hand_over_while_free(slots, channel)
            for source in tuple(self._units.sources):
                if not self.idle_slots():
                    break
                source.slot_idle()
                self._hand_over_while_free(slots, channel)
        finally:
            self._pumping = False

    def _may_start(self, holdings: Holdings) -> bool:
        """Return whether what waits here is known to be ours still; if not, look again soon."""
        if holdings.stuck != self._stuck:  # others have got it, as it had no slot here
            self._stuck = holdings.stuck
            self._units.drop_lost()
        if not (holds := holdings.lease_guard.holds):
            self._again.within(LOOK_AGAIN_SECONDS)
        return holds

    def _hand_over_while_free(self, slots: Slots, channel: EngineMixin) -> None:
        ready = channel.link.holdings.ready
        while self._units and not STOP.told:
            if not (free := slots.free()):
                slots.await_next()
                return
            if not (eligible := self._scheduler.eligible(self._units, free=free)):
                return
            queue = self._scheduler.next(eligible)
            if self._scheduler.yields(self._units.first(queue), channel.fetcher.outlook.coming):
                self._make_room()
                self._again.within(YIELD_SECONDS / 4)
                return
            slots.acquire()
            self._hand_over(queue, self._units.take(queue))
            channel.fetcher.inbox.end_slice(queue)
            ready.handed(queue, more=self._units.count(queue) > 0)

    def _hand_over(self, queue: str, unit: Unit) -> None:
        mark(unit.requests, State.HANDED)
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
        if not isinstance(unit, RequestUnit):
            self.sizes.came(queue, len(unit.requests), batched=True)
        if self._channel is not None:  # the solo pool has run it by now
            self._channel.fetcher.sightings.held_up(time.monotonic() - began)

    def _unit_entered(self) -> Leave:
        return self._scheduler.enter(self._handing)

    def _make_room(self) -> None:
        """Fetch again: a slot is free, or will be soon."""
        if self._channel is not None and self._running:
            self._channel.link.holdings.settlers.made_room([""])
