"""Urgent calls while the load runs: one `status` call every 50 ms, and how long each waited.

The wait is from just before the call to the first line of its task, by the clock of this machine,
which the workers of the demo share.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping
from threading import Event

from celery import states
from celery.result import denied_join_result
from kombu.exceptions import OperationalError

from routing import QueueFull
from tasks.demo.endings import disconnect_backend, stored_results
from tasks.flights import status

INTERVAL_SECONDS = 0.05

#: Answers asked for at a time; the oldest call's comes nearly always first.
LOOK_AT = 100

#: The last answers are waited for this long; a lease, and then some.
LAST_ANSWERS_SECONDS = 90.0


class UrgentCalls:
    """Calls and measures until told to stop; `waits_ms` are the answered calls in order."""

    def __init__(self, ids: Mapping[int, str], *, stop: Event) -> None:
        self.waits_ms: list[float] = []
        self._ids = ids
        self._stop = stop
        self._pending: dict[str, float] = {}
        self._away: tuple[type[BaseException], ...] = ()

    def run(self, load_over: Event) -> None:
        """Call every 50 ms until ``load_over``, then collect what is still on its way."""
        self._away = (OperationalError, OSError, *status.backend.connection_errors)
        try:
            self._call_until(load_over)
            self._collect_rest()
        finally:
            disconnect_backend(status.app)

    def _call_until(self, load_over: Event) -> None:
        due = time.monotonic()
        while not (load_over.wait(max(0.0, due - time.monotonic())) or self._stop.is_set()):
            due = max(due + INTERVAL_SECONDS, time.monotonic())
            self._call()
            self._collect()

    def _call(self) -> None:
        item_id = self._ids.get(random.randrange(len(self._ids) or 1), "none yet")
        called_at = time.time()
        try:
            with denied_join_result():  # nobody waits for this result, so no subscription to it
                result = status.apply_async((item_id,), retry=False)
        except QueueFull:
            return
        except self._away:
            return  # an urgent caller does not wait for a broker to come back
        self._pending[result.id] = called_at

    def _collect(self) -> None:
        """Take the answers that are there."""
        asked = list(itertools.islice(self._pending, LOOK_AT))
        try:
            for task_id, meta in stored_results(status.app, asked):
                called_at = self._pending.pop(task_id)
                if meta["status"] == states.SUCCESS:
                    self.waits_ms.append((meta["result"]["started_at"] - called_at) * 1000)
        except self._away:
            pass  # the answers wait in the result backend

    def _collect_rest(self) -> None:
        """Wait for the last answers; a call that nobody answers in time is not counted."""
        deadline = time.monotonic() + LAST_ANSWERS_SECONDS
        while self._pending and time.monotonic() < deadline:
            self._collect()
            if self._stop.wait(INTERVAL_SECONDS):
                return
