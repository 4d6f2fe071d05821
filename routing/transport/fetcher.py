"""Carries endings to the broker and messages back: the fetch loop of one consuming channel.

Two commands alternate on the channel's own connection. An *exchange* settles and fetches; when no
queue has anything left, a blocking pop of *bells* waits until a producer rings. Neither is sent
while the other's reply is out. What cannot ride on an exchange, because the connection waits for a
bell, goes over a pooled connection.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty
from typing import TYPE_CHECKING, Any

from redis import exceptions

from routing.inflight.fetch_policy import SETTLE_SECONDS, Room, endings_to_call, should_call
from routing.redis.backoff import Patience
from routing.redis.clocks import boot_seconds
from routing.redis.faults import LOST, NO_WRITES, ServerRefused, answer_of, is_lost
from routing.redis.scripts import SCRIPTS, command
from routing.redis.silence import is_silent
from routing.redis.values import NOTHING, Arrival, Burial, Exchanged, Fetch, Return, Settlement
from routing.transport.delivery import Delivery
from routing.transport.flusher import Flusher
from routing.transport.inbox import Inbox
from routing.transport.wakeup import Alarm

if TYPE_CHECKING:
    from routing.transport.channel import EngineMixin

logger = logging.getLogger(__name__)

#: Seconds that a worker waits for a bell before it looks anyway: the worst delay when a token is
#: lost, and for messages of producers that ring nothing (stock Celery).
BELL_SECONDS = 1

#: An ending that has just come takes an exchange with it, which looks at every queue: listening for
#: a bell in between would cost three more round trips to be woken from it. Not for longer: what
#: comes to an empty queue meanwhile is not heard.
BUSY_SECONDS = SETTLE_SECONDS

#: What a reply said is no longer known when the loop was held up for so long since its call, such
#: as by a task that ran inside it (solo).
STALE_SECONDS = 0.02

#: A server that takes no writes for longer is left: another connection may find the new master.
LEAVE_SECONDS = 5.0

#: How long a channel that closes waits for a server that refuses: what ended would run again.
STOP_SECONDS = 5.0

#: What a server answers that refuses, or that finds the call itself wrong.
ANSWERED = (ServerRefused, exceptions.ResponseError)

#: A queue is not asked for more while that many of its messages wait for delivery.
INBOX_HIGH = 256


class Courier:
    """The fetch loop of one channel.

    Arguments:
        channel: the consuming channel; its connection is driven by kombu's poller.
    """

    def __init__(self, channel: EngineMixin) -> None:
        self.channel = channel
        self.name = secrets.token_hex(8)
        self._tag_prefix = f"{self.name}:"
        self.inbox = Inbox()
        self._holdings = channel.runtime.holdings
        self._verbs = channel.verbs
        self._own_bell = self._verbs.keys.own_bell(self.name)
        self._calls = itertools.count(1)
        self._fetch: Fetch | None = None
        self._settlement = NOTHING
        self._listening: frozenset[str] | None = None
        self._rung = False
        self._empty: set[str] = set()
        self._left: dict[str, int] = {}
        self._stale = False
        self._delivery = Delivery(channel)
        self._last_reply = 0.0
        self._sent_at = 0.0
        self._last_ending = 0.0
        self._thread = threading.get_ident()
        self._timer_set = False
        self._rests_below = 0
        self._rests_until = 0.0
        self._stopped = False
        self._flusher: Flusher | None = None
        self._settling = threading.RLock()
        self._alarm = Alarm(self._ring_for_due)
        self._fetching = Patience("let this worker fetch")
        self._carrying = Patience("settle")
        #: For what is consumed without acknowledgement, which holds up nothing else.
        self.taking = Patience("let this worker take what is not acknowledged")
        self._is_waking = False
        self._is_lost = False

    @property
    def is_out(self) -> bool:
        """Whether a command of this courier waits for its reply."""
        return self._fetch is not None or self._listening is not None

    # -- sending

    def send_next(self) -> bool:
        """Send the next command on the channel's connection; False when there is none."""
        self._forget_unanswered()
        self._thread = threading.get_ident()
        if self._rests():
            return False
        if self._stopped or not self._may_fetch():
            return False
        self._holdings.give_back_forsaken()
        if self._holdings.outbox.has_returns:
            self._carry(self._give_back_now)
        if self._alarm.is_over():
            self._empty.clear()
        freed = self._holdings.freed  # before the rooms, which other threads make larger
        rooms = self._rooms()
        open_rooms = [room for room in rooms if room.credit > 0]
        unseen = [room for room in open_rooms if room.queue not in self._empty]
        # What cannot be carried yet is no reason to call.
        outbox = self._holdings.outbox
        waiting = outbox.endings if self._carrying.seconds_left else len(outbox)
        if self._should_exchange(unseen, waiting):
            self._send_exchange(open_rooms)
            return True
        if self._hub is not None and self._can_wait(rooms, open_rooms, unseen):
            self._rest(rooms, waiting, freed)
            return False
        self._send_listen(open_rooms)
        return True

    def _rests(self) -> bool:
        """Return whether what was found at the last look still holds: there is nothing to send."""
        return (
            self._timer_set  # else nobody would look again
            and self._holdings.freed < self._rests_below
            and time.monotonic() < self._rests_until
            and not self._holdings.outbox.has_returns
        )

    def _rest(self, rooms: Sequence[Room], waiting: int, freed: int) -> None:
        """Note until when, and until how much has ended, another look would find the same.

        The loop comes round at least twice for each task, and a look goes through all queues.
        """
        now = time.monotonic()
        age = max(now - self._last_reply, self._holdings.outbox.age)
        self._rests_until = now + SETTLE_SECONDS - age
        if self._holdings.ceiling is None:
            needed = endings_to_call(
                [room for room in rooms if room.queue not in self._empty], endings=waiting
            )
            self._rests_below = freed + needed

    def _rooms(self) -> list[Room]:
        """Return what may be fetched of each queue."""
        queues = self.channel.engine_queues
        size_bytes = self._holdings.byte_rooms(queues)
        return [self._room(queue, size_bytes[queue]) for queue in queues]

    def _by_held_bytes(self, rooms: Sequence[Room]) -> Sequence[Room]:
        """Order by what each queue holds for its weight, the least first.

        A reply has one bound for all, and who comes first finds room.
        """
        held, queue = self._holdings.held_bytes, self._verbs.topology.queue
        return sorted(rooms, key=lambda room: held(room.queue) / queue(room.queue).weight)

    def _may_fetch(self) -> bool:
        """Return whether to talk to the server now, which may have refused to just before."""
        if not (seconds := self._fetching.seconds_left):
            return True
        if self._hub is None:
            time.sleep(seconds)
            return not self._stopped
        self._wake_after(seconds)
        return False

    def _carry(self, carry: Callable[[], None]) -> None:
        """Carry what is owed before a fetch; what the server refuses is kept and holds up none."""
        if self._carrying.seconds_left:
            return
        try:
            carry()
        except Exception as error:
            if is_lost(error):
                raise
            self._carrying.refused(error)

    def _room(self, queue: str, size_bytes: int) -> Room:
        waiting = self.inbox.waiting(queue)
        if self._holdings.ceiling is not None:
            waiting = INBOX_HIGH * len(self.inbox)  # they take the slots that seem to be free
        if waiting >= INBOX_HIGH or not size_bytes:
            return Room(queue, 0, self._holdings.prefetch(queue))
        return Room(queue, *self._holdings.credit_of(queue), size_bytes)

    def _can_wait(
        self, rooms: Sequence[Room], open_rooms: Sequence[Room], unseen: Sequence[Room]
    ) -> bool:
        """Return whether to send nothing now; the loop's timer or an ending makes it look again."""
        is_busy = time.monotonic() - self._last_ending < BUSY_SECONDS
        if unseen or is_busy or len(self._holdings.outbox):
            self._set_timer()
        is_deaf = not open_rooms and not self.channel.free_queues
        return bool(unseen) or is_deaf or (is_busy and len(open_rooms) < len(rooms))

    def _should_exchange(self, unseen: Sequence[Room], waiting: int) -> bool:
        if self._hub is None:
            return bool(unseen or waiting)
        return should_call(
            unseen,
            endings=waiting,
            ending_age=self._holdings.outbox.age,
            since_last_call=time.monotonic() - self._last_reply,
        )

    def _send_exchange(self, rooms: Sequence[Room]) -> None:
        # Before the fetch, which uses the credit that they have freed.
        self._carry(self._bury_now)
        rooms = self._by_held_bytes(rooms)
        asked = tuple((room.queue, room.ask) for room in rooms)
        size_bytes = tuple(room.size_bytes for room in rooms)
        fetch = Fetch(self._next_prefix(), asked, size_bytes)
        if self._holdings.ceiling is not None:
            # What a slot can run is the same slot's for every queue.
            fetch = replace(fetch, most_queues=1)
        self._settlement = self._holdings.outbox.take_settlement()
        self._fetch = fetch
        self._holdings.asking(fetch)
        self._send(command("exchange", *self._verbs.exchange_call(self._settlement, fetch)))

    def _send_listen(self, rooms: Sequence[Room]) -> None:
        self._listening = frozenset(room.queue for room in rooms)
        self._rung = False
        heard = [*(room.queue for room in rooms), *self.channel.free_queues]
        bells = [self._verbs.keys.bell(queue) for queue in heard]
        self._send(["BRPOP", self._own_bell, *bells, BELL_SECONDS])
        self._alarm.set(self.channel.connection if self._hub is not None else None)

    def _send(self, args: Sequence[Any]) -> None:
        connection = self.channel.client.connection
        self._rests_until = 0.0  # its reply changes all that
        self.channel._brpop_sent_at = time.monotonic()
        self._sent_at = boot_seconds()
        self.channel._in_poll = connection  # last: whoever looks at how old it is looks at this
        try:
            connection.send_command(*args)
        except LOST:
            self.channel._in_poll = None
            self._forget_unanswered()
            raise

    def _next_prefix(self) -> str:
        return f"{self._tag_prefix}{next(self._calls)}:"

    def has_named(self, tag: Any) -> bool:
        """Return whether a tag was given by a fetch of this courier."""
        return isinstance(tag, str) and tag.startswith(self._tag_prefix)

    # -- reading

    def read_reply(self) -> bool:
        """Read the reply that is due; True when it brought messages into the inbox.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost, or the server is no longer the
            master.
        """
        try:
            reply = self._parse_reply()
        except exceptions.NoScriptError:
            self._send_again()
            return False
        except ANSWERED as error:
            self._put_off(error)
            return False
        except LOST:
            self._drop_connection()
            raise
        self.channel._in_poll.heard()
        self.channel._in_poll = None
        self._fetching.passed()
        if self._fetch is None:
            self._listening = None
            self._empty.clear()
            return False
        return self._take(self._verbs.exchange_reply(self._fetch, reply))

    def _parse_reply(self) -> Any:
        # The plain client's parser: kombu's prefixing one would cut what looks like a prefix.
        parse: Any = self.channel.plain_client.parse_response
        return parse(self.channel.client.connection, "EVALSHA")

    def _send_again(self) -> None:
        """Load the scripts on a server that forgot them; a refused call has not run."""
        try:
            for script in SCRIPTS.values():
                self.channel.plain_client.script_load(script.text)
        except ANSWERED as error:
            self._put_off(error)
            return
        except LOST:
            self._drop_connection()
            raise
        if self._fetch is not None:
            keys_and_args = self._verbs.exchange_call(self._settlement, self._fetch)
            self._send(command("exchange", *keys_and_args))

    def _put_off(self, error: Exception) -> None:
        """Keep what a refused command carried, and try again after a while."""
        self.channel._in_poll = None
        self._listening = None
        if self._fetch is not None:
            fetch, settlement = self._fetch, self._settlement
            self._fetch, self._settlement = None, NOTHING
            if isinstance(error, ServerRefused):
                self._holdings.refused(fetch)
            else:
                self._holdings.unanswered(fetch)  # it may have run in part
            self._holdings.outbox.restore_settlement(settlement)
        self.put_off(error)
        is_elsewhere = answer_of(error).startswith(NO_WRITES)
        if is_elsewhere and self._fetching.lasts_seconds > LEAVE_SECONDS:
            self._drop_connection()
            raise error

    def put_off(self, error: Exception) -> None:
        """Fetch nothing for a while, as the server refuses what a fetch needs."""
        self._fetching.refused(error)
        if self._hub is not None:
            self._wake_after(self._fetching.seconds_left)

    def _wake_after(self, seconds: float) -> None:
        def wake() -> None:
            self._is_waking = False
            if not self.channel.closed:
                self.channel.connection.inbox_filled()

        if not self._is_waking:
            self._is_waking = True
            self.channel.connection.call_later(seconds, wake)

    def _take(self, reply: Exchanged) -> bool:
        fetch, self._fetch, self._settlement = self._fetch, None, NOTHING
        assert fetch is not None
        self._holdings.answered(fetch, reply.sizes())
        self._holdings.clock.learn(reply.server_ms)
        age = boot_seconds() - self._sent_at
        if age > self._verbs.topology.lease_seconds / 3:
            self._holdings.doubt()
        self._left = reply.left
        self._stale = age > STALE_SECONDS
        # What a stale reply calls empty is asked again.
        self._empty = {q for q, left in reply.left.items() if left == 0 and not self._stale}
        self._last_reply = time.monotonic()
        self._alarm.learn(due_ms=reply.next_due_ms, server_ms=reply.server_ms)
        if reply.counted and reply.arrivals and not self._note_charged(reply.arrivals):
            return False
        self.inbox.add(reply.arrivals)
        return bool(reply.arrivals)

    def _note_charged(self, arrivals: Sequence[Arrival]) -> bool:
        """Look up what took a process down before; False when the server does not say."""
        try:
            self._delivery.note_charged(arrivals)
        except ANSWERED as error:
            for arrival in arrivals:
                self._holdings.give_back(arrival.tag)
            self.put_off(error)
            return False
        return True

    def check_silence(self) -> None:
        """Drop a connection on which a command has had no reply for longer than it may take.

        The loop waits for a reply without reading, so no timeout of the socket ends that.

        Raises:
            redis.exceptions.ConnectionError: the connection is lost.
        """
        limit = getattr(self.channel._in_poll, "socket_timeout", None)
        if not limit or not is_silent(self.channel, limit + BELL_SECONDS):
            return
        self.channel._in_poll.heard_nothing()
        self._drop_connection()
        self._is_lost = True
        self._holdings.doubt()
        raise exceptions.ConnectionError(f"the broker did not answer for {limit:g} s")

    def is_unheard(self, seconds: float) -> bool:
        """Return whether a command has had no reply for so long; called from any thread."""
        return is_silent(self.channel, seconds)

    def _drop_connection(self) -> None:
        self.channel._in_poll = None
        self._forget_unanswered()
        self.channel.client.connection.disconnect()

    def _forget_unanswered(self) -> None:
        """Take back what was on its way when the connection went: it may have arrived."""
        self._listening = None
        if self._fetch is None or self.channel._in_poll:
            return
        fetch, settlement = self._fetch, self._settlement
        self._fetch, self._settlement = None, NOTHING
        self._holdings.unanswered(fetch)
        self._holdings.outbox.restore_settlement(settlement)

    # -- delivering

    def deliver_slice(self) -> bool:
        """Deliver one slice of the inbox; True while there is more."""
        self.inbox.deliver_slice(self._delivery.deliver)
        self.wake_for_room()
        return len(self.inbox) > 0

    def fetch_one(self, queue: str) -> dict[str, Any]:
        """Fetch one message of a queue over a pooled connection, for ``basic_get``.

        Raises:
            queue.Empty: no message waits.
        """
        fetch = Fetch(self._next_prefix(), ((queue, 1),))
        self._holdings.asking(fetch)
        try:
            reply = self._verbs.exchange(self.channel.plain_client, NOTHING, fetch)
        except Exception:
            self._holdings.unanswered(fetch)
            raise
        self._holdings.answered(fetch, reply.sizes())
        if not reply.arrivals:
            raise Empty()
        if reply.counted and not self._note_charged(reply.arrivals):
            raise Empty()
        return self._delivery.payload_or_refuse(reply.arrivals[0])

    # -- settling

    def backlog(self, queue: str) -> bool:
        """Return whether more of this queue is on its way, or known to wait at the broker."""
        # Whether there is credit for it is not asked: what ended just now may still be counted.
        if self.inbox.waiting(queue) > 0 or self._left.get(queue, 0) > 0:
            return True
        is_asked = self._fetch is not None and queue in dict(self._fetch.asked)
        return self._stale and (is_asked or self._holdings.credit(queue) > 0)

    def held_up(self, seconds: float) -> None:
        """Note that the loop stood still: what was known to be empty may not be so any more."""
        if seconds > STALE_SECONDS:
            self._stale = True
            self._empty.clear()

    def ended(self, queue: str) -> None:
        """Note that endings wait; called for every one of them."""
        self._last_ending = time.monotonic()
        if self._hub is None:
            self._notify_flusher()
            return
        if threading.get_ident() != self._thread:
            self._hub.call_soon(self._set_timer)
            return
        deaf = self._listening is not None and queue not in self._listening and not self._rung
        if deaf and any(room.is_worth_a_call for room in self._rooms() if room.queue == queue):
            self._ring()
        self._set_timer()

    def settle_now(self) -> None:
        """Carry all endings and returns to the broker over a pooled connection, and wait for it."""
        # One thread at a time: what another one carries is there, too, when this returns, and the
        # pool has not a connection for each.
        with self._settling:
            fault: Exception | None = None
            try:
                self._bury_now()
            except Exception as error:
                if is_lost(error):
                    raise
                fault = error  # a dead letter that is refused holds up none of the others
            while (settlement := self._holdings.outbox.take_settlement()).endings:
                self._settle(settlement)
            self._give_back_now()
            if fault is not None:
                raise fault

    def _settle(self, settlement: Settlement) -> None:
        nothing_asked = Fetch(self._next_prefix(), ())
        try:
            self._verbs.exchange(self.channel.plain_client, settlement, nothing_asked)
        except Exception:
            self._holdings.outbox.restore_settlement(settlement)
            raise

    def _bury_now(self) -> None:
        kept: dict[str, list[Burial]] = {}
        fault: Exception | None = None
        burials = self._holdings.outbox.take_burials()
        for queue, entries in burials.items():
            try:
                if isinstance(fault, LOST):
                    raise fault
                self._verbs.bury(self.channel.plain_client, queue, entries)
            except Exception as error:
                kept[queue], fault = entries, error
        if fault is not None:
            self._holdings.outbox.restore_burials(kept)
            raise fault

    def _give_back_now(self) -> None:
        kept: list[tuple[str, list[Return]]] = []
        fault: Exception | None = None
        for queue, entries in self._holdings.outbox.take_returns():
            try:
                if isinstance(fault, LOST):
                    raise fault
                self._verbs.give_back(self.channel.plain_client, queue, entries)
            except Exception as error:
                kept.append((queue, entries))
                fault = error
        self._empty.clear()
        if fault is not None:
            self._holdings.outbox.restore_returns(kept)
            raise fault

    @property
    def _hub(self) -> Any:
        connection = self.channel.connection
        return connection.hub if connection is not None else None

    def _set_timer(self) -> None:
        if not self._timer_set and self._hub is not None:  # else the channel has been closed
            self._timer_set = True
            seconds = max(SETTLE_SECONDS, self.pause_seconds)
            self.channel.connection.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_set = False
        # Without a command out, the next tick of the loop carries what is due, if it still
        # consumes.
        is_waiting = self._listening is not None or self._fetching.seconds_left > 0
        if is_waiting or self._stopped or not self.channel.engine_queues:
            self.flush()

    def flush(self) -> None:
        """Settle what waits; wake the connection when a queue it does not listen to has room.

        On a closed channel nothing happens: the endings wait for the next one.
        """
        if self.channel.closed:
            return
        if self.pause_seconds and not self._stopped:
            self._flush_later()
            return
        try:
            self.settle_now()
            self._carrying.passed()
            self.wake_for_room()
        except ANSWERED as error:
            self._carrying.refused(error)
            self._flush_later()
        except (*LOST, exceptions.RedisError) as error:
            # The endings are kept; the consuming connection notices the loss and reconnects.
            logger.debug("could not settle yet: %s", error)

    @property
    def pause_seconds(self) -> float:
        """How long nothing is carried, as the server has refused it just now."""
        return self._carrying.seconds_left

    def _flush_later(self) -> None:
        if self._stopped:
            return
        if self._hub is None:
            self._notify_flusher()
        elif threading.get_ident() == self._thread:
            self._set_timer()
        else:
            self._hub.call_soon(self._set_timer)

    def wake_for_room(self) -> None:
        """Wake the connection when a queue that it does not listen to has room."""
        listening = self._listening
        if listening is None or self._rung:
            return
        if any(room.credit > 0 for room in self._rooms() if room.queue not in listening):
            self._ring()

    def look_again(self) -> None:
        """Have the next wait for a bell end at once."""
        self._ring()

    def _ring_for_due(self) -> None:
        if self._listening is not None and not self._rung and not self.channel.closed:
            self._ring()

    def _ring(self) -> bool:
        """Ring this worker's own bell; False when the connection for that is lost."""
        self._rung = True
        pipeline = self.channel.plain_client.pipeline(transaction=False)
        pipeline.lpush(self._own_bell, "1")
        pipeline.pexpire(self._own_bell, 60_000)
        try:
            pipeline.execute()
        except (*LOST, exceptions.RedisError) as error:
            # Lost, or full: then the wait for a bell ends by its timeout.
            logger.debug("could not ring: %s", error)
            return not is_lost(error)
        return True

    def _notify_flusher(self) -> None:
        if self._flusher is None:
            self._flusher = Flusher(self)
        self._flusher.notify()

    # -- stopping

    def stand_down(self) -> None:
        """Stop fetching: read the reply that is out, give back what was not delivered, settle.

        What cannot be sent now (the connection is lost) stays with the holdings.
        """
        self._stopped = True
        try:
            if self.channel._in_poll:
                self._read_last()
        except (*LOST, exceptions.RedisError) as error:
            logger.debug("could not read the last reply: %s", error)
        self.channel._in_poll = None
        self._forget_unanswered()
        self.return_inbox()
        if not self._is_lost:
            self._flush_at_last()

    def _read_last(self) -> None:
        is_heard = not self.channel._in_poll.is_doubtful
        if is_heard and (self._listening is None or self._ring()):
            self.read_reply()
        else:
            self._drop_connection()

    def _flush_at_last(self) -> None:
        until = time.monotonic() + STOP_SECONDS
        self.flush()
        while (seconds := self.pause_seconds) and time.monotonic() + seconds < until:
            time.sleep(seconds)
            self.flush()

    def return_inbox(self, queue: str | None = None) -> None:
        """Give back what was fetched and not delivered, of one queue or of all."""
        for arrival in self.inbox.take_all(queue):
            self._holdings.give_back(arrival.tag)

    def close(self) -> None:
        """Stop for good; closing twice is safe."""
        self._alarm.stop()
        if self._flusher is not None:
            self._flusher.stop()
