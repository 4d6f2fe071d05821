"""Brings messages from the broker: the fetch loop of one consuming channel.

Two commands alternate on its own connection. An *exchange* settles and fetches; when no queue has
anything left, a blocking pop of *bells* waits until a producer rings. One is out at a time; which
comes next is decided by `fetch_policy.next_step`.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions

from routing.inflight.fetch_policy import (
    LISTEN_SECONDS,
    Exchange,
    Listen,
    Rest,
    Situation,
    next_step,
)
from routing.inflight.fetch_state import IDLE, Exchanging, FetchState, Listening
from routing.inflight.resting import Resting
from routing.inflight.sightings import Sightings
from routing.redis.backoff import Backoff
from routing.redis.clocks import boot_seconds
from routing.redis.faults import ANSWERED, LOST, NO_WRITES, ServerRefused, answer_of
from routing.redis.scripts import command, load_all
from routing.redis.values import Exchanged
from routing.transport.allowances import Allowances, Consumed
from routing.transport.delivery import Delivery
from routing.transport.inbox import Inbox
from routing.transport.link import Link
from routing.transport.outlook import Outlook
from routing.transport.own_bell import OwnBell
from routing.transport.settler import Settler
from routing.transport.wakeup import Loop, Wakeup
from routing.transport.wire import Wire

logger = logging.getLogger(__name__)

#: A server that takes no writes for longer is left: another connection may find the new master.
LEAVE_SECONDS = 5.0


class Fetcher:
    """The fetch loop of one channel.

    Arguments:
        link: the database.
        wire: the connection that is driven by kombu's poller.
        consumed: the queues.
        settler: settles what an exchange does not carry.
        delivery: takes what has come.
        loop: returns the event loop, None where there is none.
    """

    def __init__(
        self,
        link: Link,
        wire: Wire,
        consumed: Consumed,
        *,
        settler: Settler,
        delivery: Delivery,
        loop: Callable[[], Loop | None],
    ) -> None:
        self.name = secrets.token_hex(8)
        self.inbox = Inbox()
        self._link, self._wire, self._consumed = link, wire, consumed
        self._holdings, self._commands = link.holdings, link.commands
        self._settler, self._delivery, self._loop = settler, delivery, loop
        self._allowances = Allowances(consumed, link.holdings, self.inbox, self.name)
        self.bell = OwnBell(link, self.name, self._allowances, loop)
        self._bell_of = link.commands.keys.bell
        self._calls = itertools.count(1)
        self._state: FetchState = IDLE
        self.sightings = Sightings()
        self.outlook = Outlook(
            consumed,
            link.holdings,
            inbox=self.inbox,
            allowances=self._allowances,
            sightings=self.sightings,
            asked=lambda: self._state.coming,
        )
        self._last_reply = 0.0
        self._resting = Resting()
        self._stopped = self._is_lost = False
        self._refusals = Backoff("let this worker fetch")
        self._again = Wakeup(self._look_again, loop)

    @property
    def is_out(self) -> bool:
        """Whether a command of this fetcher waits for its reply."""
        return self._state is not IDLE

    # -- sending

    def send_next(self) -> bool:
        """Send the next command on the channel's connection; False when there is none."""
        self._forget_unanswered()
        if self._rests() or self._stopped or not self._may_fetch():
            return False
        self._holdings.requeue_forsaken()
        self._settler.requeue()
        self.sightings.hear_what_is_due()
        self.sightings.hear(self._allowances.with_slots(self._holdings.outbox.ended_in))
        freed = self._holdings.credit.freed  # first: other threads make the allowances larger
        step = next_step(self._situation())
        if isinstance(step, Exchange) and self._holdings.outbox.has_burials:
            self._settler.bury()  # before the fetch that uses the credit that they have freed
            step = next_step(self._situation())
        match step:
            case Exchange():
                self._send_exchange(step)
            case Listen():
                self._send_listen(step)
            case Rest():
                self._rest(step, freed)
        return not isinstance(step, Rest)

    def _situation(self) -> Situation:
        now, outbox = time.monotonic(), self._holdings.outbox
        return Situation(
            allowances=self._allowances.all(),
            quiet=frozenset(self.sightings.quiet),
            # What cannot be carried yet is no reason to call.
            endings=outbox.endings if self._settler.pause_seconds else len(outbox),
            ending_age=outbox.age,
            since_reply=now - self._last_reply,
            since_look=self.sightings.since_look,
            since_ending=now - self._holdings.last_ended,
            ending_interval=self._holdings.ending_interval,
            has_loop=self._loop() is not None,
            hears_others=bool(self._consumed.free_queues),
        )

    def _rests(self) -> bool:
        return (
            self._settler.will_look  # else nobody would look again
            and self._resting.lasts(self._holdings.credit.freed)
            and not self._holdings.outbox.has_returns
        )

    def _rest(self, rest: Rest, freed: int) -> None:
        self._settler.rides = True
        if rest.looks_again or len(self._holdings.outbox):
            self._settler.look_later()
        self._resting.begin(rest, freed)

    def _may_fetch(self) -> bool:
        """Return whether to talk to the server now, which may have refused to just before."""
        if not (seconds := self._refusals.seconds_left):
            return True
        if self._loop() is None:
            time.sleep(seconds)
            return not self._stopped
        self._settler.rides = False
        self._again.within(seconds)
        return False

    def _send_exchange(self, step: Exchange) -> None:
        fetch = self._allowances.fetch(step.asked, prefix=self.next_prefix(), quiet=step.quiet)
        settlement = self._holdings.outbox.take_settlement(rides=True)
        self._holdings.asking(fetch)
        self._state = Exchanging(fetch, settlement, step.looks_at_all)
        self._holdings.ready.hears(self._state.coming)
        self._settler.rides = True
        self._send(command("exchange", *self._commands.exchange_call(settlement, fetch)))

    def _send_listen(self, step: Listen) -> None:
        self._state = Listening(frozenset(step.queues))
        self._holdings.ready.hears(step.queues, own_bell=self.bell.key)
        self._settler.rides = False
        bells = map(self._bell_of, [*step.queues, *self._consumed.free_queues])
        self._send(["BRPOP", self.bell.key, *bells, f"{step.seconds:.3f}"])
        deaf = [q for q in self._consumed.engine_queues if q not in step.queues]
        self.bell.listen(step.queues, deaf=deaf, due_in=self.sightings.seconds_to_due)

    def _send(self, args: Sequence[Any]) -> None:
        self._resting.end()  # its reply changes all that
        try:
            self._wire.send(args)
        except LOST:
            self._forget_unanswered()
            raise

    def next_prefix(self) -> str:
        """Return what begins the tags of the next fetch."""
        return f"{self.name}:{next(self._calls)}:"

    # -- reading

    def read_reply(self) -> bool:
        """Read the reply that is due; True when it brought messages into the inbox.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost, or the server is no longer the
            master.
        """
        try:
            reply = self._wire.read()
        except exceptions.NoScriptError:
            self._send_again()
            return False
        except ANSWERED as error:
            self._put_off(error)
            return False
        except LOST:
            self._forget_unanswered()
            raise
        self._refusals.passed()
        state = self._end_command()
        if isinstance(state, Exchanging):
            return self._take(state, self._commands.exchange_reply(state.fetch, reply))
        if reply is not None:
            bell = reply[0].decode()
            self.sightings.hear(q for q in self._consumed.engine_queues if self._bell_of(q) == bell)
        return False

    def _end_command(self) -> FetchState:
        state, self._state = self._state, IDLE
        self.bell.is_over()
        return state

    def _send_again(self) -> None:
        """Load the scripts on a server that forgot them; a refused call has not run."""
        try:
            load_all(self._link.client)
        except ANSWERED as error:
            self._put_off(error)
            return
        except LOST:
            self._drop_connection()
            raise
        if isinstance(state := self._state, Exchanging):
            keys_and_args = self._commands.exchange_call(state.settlement, state.fetch)
            self._send(command("exchange", *keys_and_args))

    def _put_off(self, error: Exception) -> None:
        """Keep what a refused command carried, and try again after a while."""
        if isinstance(state := self._end_command(), Exchanging):
            if isinstance(error, ServerRefused):
                self._holdings.refused(state.fetch)
            else:
                self._holdings.unanswered(state.fetch)  # it may have run in part
            self._holdings.outbox.restore_settlement(state.settlement)
        self.put_off(error)
        is_elsewhere = answer_of(error).startswith(NO_WRITES)
        if is_elsewhere and self._refusals.lasts_seconds > LEAVE_SECONDS:
            self._drop_connection()
            raise error

    def put_off(self, error: Exception) -> None:
        """Fetch nothing for a while, as the server refuses what a fetch needs."""
        self._refusals.refused(error)
        self._settler.rides = False
        if self._loop() is not None:
            self._again.within(self._refusals.seconds_left)

    def _take(self, sent: Exchanging, reply: Exchanged) -> bool:
        self._holdings.answered(sent.fetch, reply.sizes())
        self._holdings.clock.learn(reply.server_ms)
        age = boot_seconds() - self._wire.sent_at
        if age > self._commands.topology.lease_seconds / 3:
            self._holdings.doubt()
        self.sightings.take(reply, age_seconds=age, looked_at_all=sent.looks_at_all)
        self._last_reply = time.monotonic()
        self.inbox.add(reply.arrivals)
        return bool(reply.arrivals)

    def check_silence(self) -> None:
        """Drop a connection that has had no reply for too long, and raise what says so."""
        try:
            self._wire.check_silence(longest_wait=LISTEN_SECONDS)
        except exceptions.ConnectionError:
            self._forget_unanswered()
            self._is_lost = True
            self._holdings.doubt()
            raise

    def _drop_connection(self) -> None:
        self._wire.drop()
        self._forget_unanswered()

    def _forget_unanswered(self) -> None:
        """Take back what was on its way when the connection went: it may have arrived."""
        if self._wire.is_out:
            return
        if isinstance(state := self._end_command(), Exchanging):
            self._holdings.unanswered(state.fetch)
            self._holdings.outbox.restore_settlement(state.settlement)

    # -- delivering

    def deliver_slice(self) -> bool:
        """Deliver one slice of the inbox; True while there is more."""
        self.inbox.deliver_slice(self._delivery.deliver)
        if not len(self.inbox):
            self._holdings.ready.delivered()
        self.bell.slice_delivered(more=len(self.inbox) > 0)
        return len(self.inbox) > 0

    def _look_again(self) -> None:
        if not self._stopped and (loop := self._loop()) is not None:
            loop.inbox_filled()

    # -- stopping

    def stand_down(self) -> None:
        """Stop fetching: read the reply that is out, requeue what was not delivered, settle."""
        self._stopped = True
        self._settler.rides = False
        try:
            if self._wire.is_out:
                self._read_last()
        except (*LOST, exceptions.RedisError) as error:
            logger.debug("could not read the last reply: %s", error)
        self._wire.forget()
        self._forget_unanswered()
        self.return_inbox()
        if not self._is_lost:
            self._settler.flush_at_last()

    def _read_last(self) -> None:
        is_listening = isinstance(self._state, Listening)
        if not self._wire.is_doubtful and (not is_listening or self.bell.ring()):
            self.read_reply()
        else:
            self._drop_connection()

    def return_inbox(self, queue: str | None = None) -> None:
        """Requeue what was fetched and not delivered, of one queue or of all."""
        for arrival in self.inbox.take_all(queue):
            self._holdings.requeue(arrival.tag)

    def close(self) -> None:
        """Wake nobody any more."""
        self._again.stop()
        self.bell.close()
