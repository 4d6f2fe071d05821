"""One run of the demo on a platform that is up: send, call, watch, add up."""

from __future__ import annotations

import itertools
import logging
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import celery
from kombu.exceptions import OperationalError

from tasks import database
from tasks.demo import source
from tasks.demo.account import Account, Endings
from tasks.demo.endings import endings, waiting
from tasks.demo.ledger import settled_ledger
from tasks.demo.progress import Progress, progress
from tasks.demo.sender import Sender
from tasks.demo.urgent import UrgentCalls
from tasks.demo.waits import WorkerWaits, waits_between, worker_waits

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.25

#: Looking up every item's ending costs about a second for the whole load.
LOOK_UP_SECONDS = 1.0

#: Nothing moved for this long: longer than a lease, after which a dead worker's items come back.
STALLED_SECONDS = 180.0

#: Threads take turns this often instead of every 5 ms, so that the sender does not hold up the
#: urgent caller beside it in this process: what is measured is the platform.
SWITCH_SECONDS = 0.0005


class Stalled(Exception):
    """The load has stopped moving; the message says how far it came."""


class Run:
    """A load under a name of its own, so that the rows of earlier runs do not count."""

    def __init__(self, app: celery.Celery, *, limit: int, watch: Callable[[], None]) -> None:
        self.app = app
        self.name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.limit = limit
        self._watch = watch
        self._stop = Event()
        self._sender = Sender(self.name, stop=self._stop)
        self._urgent = UrgentCalls(self._sender.ids, stop=self._stop)
        self._waits: WorkerWaits = {}

    def complete(self) -> Account:
        """Run to the end and add up. Raises `Stalled` when nothing moves any more."""
        database.forget_other_runs(self.name)
        self._waits = worker_waits(self.app)
        sys.setswitchinterval(SWITCH_SECONDS)
        load_over = Event()
        shown = progress(self.limit)
        with ThreadPoolExecutor(2, thread_name_prefix="demo") as threads:
            try:
                calls = threads.submit(self._urgent.run, load_over)
                rows = itertools.islice(source.flights(), self.limit)
                sending = threads.submit(self._sender.send, rows)
                ended = self._watch_until_ended(sending, calls, shown)
                load_over.set()
                calls.result()
            finally:
                self._stop.set()  # without an end to wait for: an error, or Ctrl-C
                shown.close()
        return self._account(ended)

    def _watch_until_ended(
        self, sending: Future[None], calls: Future[None], shown: Progress
    ) -> Endings:
        """Show what happens until every sent item has an ending."""
        movement = Movement()
        look_up_at = 0.0
        failed = 0
        while True:
            for thread in (sending, calls):
                if thread.done():
                    thread.result()  # an error of a thread is an error of the run
            self._watch()
            sent = len(self._sender.ids)
            if sending.done() and time.monotonic() > look_up_at:
                if ended := self._look_up():
                    if len(ended) == sent:
                        shown.show(sent, sent=sent)
                        return ended
                    failed = len(ended.failed)
                look_up_at = time.monotonic() + LOOK_UP_SECONDS
            done = database.batch_totals(self.name)[1] + failed
            shown.show(done, sent=sent)
            movement.check(done, sent=sent)
            self._stop.wait(WATCH_SECONDS)

    def _look_up(self) -> Endings | None:
        """How every row has ended; None while some wait in the queue, or the broker is away."""
        try:
            if waiting(self.app, "bulk"):
                return None
            return endings(self.app, self.name, self._sender.ids)
        except (OperationalError, OSError, *self.app.backend.connection_errors):
            return None

    def _account(self, ended: Endings) -> Account:
        batches, by_batches, _ = database.batch_totals(self.name)
        sent = self._sender.ids.keys()
        return Account(
            sent=len(sent),
            succeeded=len(sent & ended.landed),
            failed=len(sent & ended.failed),
            rows=len(ended.landed),
            batches=batches,
            rows_by_batches=by_batches,
            seconds=ended.last_at - self._sender.started_at,
            urgent_ms=self._urgent.waits_ms,
            ledger=settled_ledger(self.app),
            waits=waits_between(self._waits, worker_waits(self.app)),
        )


class Movement:
    """Notices when neither sending nor working has moved for too long."""

    def __init__(self) -> None:
        self._last: tuple[int, int] = (-1, -1)
        self._at = time.monotonic()

    def check(self, done: int, *, sent: int) -> None:
        """Raise `Stalled` when these figures are old."""
        now = time.monotonic()
        if (done, sent) != self._last:
            self._last, self._at = (done, sent), now
        if now - self._at > STALLED_SECONDS:
            raise Stalled(
                f"nothing has moved for {STALLED_SECONDS:.0f} s: {sent:,} sent, {done:,} ended; "
                "are workers running that know tasks.flights?"
            )
