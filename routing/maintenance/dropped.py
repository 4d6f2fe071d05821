"""Gives what a queue's bound dropped its final state, so that nobody waits for it for ever.

`push` puts every dropped message into the list ``<queue>.dropped``. Each worker looks there a few
times a second and takes what it finds as it takes any message: under a lease that is renewed,
settled when the state is stored, so that a worker that dies loses nothing and nobody else repeats
what takes long. The task's result becomes a failure with `Dropped`; its error callbacks run, and a
chord that it belongs to fails. While the result backend is away, nothing is held.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from celery import states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from kombu.exceptions import OperationalError
from kombu.serialization import prepare_accept_content

from routing.errors import Dropped
from routing.message.codec import decode
from routing.message.exemption import accepted_before
from routing.message.validation import check_message
from routing.redis.faults import is_final, is_passing
from routing.redis.values import NOTHING, Arrival, Ending, Fetch, Return, Settlement
from routing.topology.names import dropped_queue
from routing.transport.channel import EngineMixin
from routing.transport.delivery import NO_MESSAGE
from routing.transport.message import EngineMessage
from routing.transport.outage import at_once
from routing.transport.runtime import topology_of

logger = logging.getLogger(__name__)

#: Messages taken at once: some hundred milliseconds with a result backend that is near.
AT_MOST = 100

#: Seconds in one run, as other jobs wait meanwhile.
RUN_SECONDS = 0.5

#: Seconds until the next try after the result backend failed.
PAUSE_SECONDS = 5.0

DROPPING = ("drop_oldest", "drop_newest", "dead_letter")


class FinishDropped:
    """The upkeep job of one worker.

    Arguments:
        consumer: the worker's consumer.
    """

    interval_seconds = 0.25

    def __init__(self, consumer: Any) -> None:
        self._app = consumer.app
        self._accept = prepare_accept_content(self._app.conf.accept_content)
        self._name = secrets.token_hex(8)
        self._calls = itertools.count(1)
        self._paused_until = 0.0
        table = topology_of(self._app)
        self._queues = [
            name
            for name, queue in (table.queues.items() if table else ())
            if queue.overflow in DROPPING
        ]

    def run(self, channel: EngineMixin) -> None:
        """Give final states as long as there is something, for a moment at most."""
        now = time.monotonic()
        if not self._queues or now < self._paused_until:
            return
        until = now + RUN_SECONDS
        while time.monotonic() < until:
            names = channel.commands.with_dropped(channel.plain_client, self._queues)
            if not names or not self._finish_some(channel, names, until):
                return

    def _finish_some(self, channel: EngineMixin, queues: Sequence[str], until: float) -> bool:
        """Finish one slice; False when not all of it could be finished now."""
        asked = tuple((dropped_queue(queue), AT_MOST) for queue in queues)
        prefix = f"{self._name}:{next(self._calls)}:"
        arrivals = channel.commands.exchange(
            channel.plain_client, NOTHING, Fetch(prefix, asked)
        ).arrivals
        done = 0
        with channel.link.holdings.kept.keep([arrival.tag for arrival in arrivals]):
            try:
                for arrival in arrivals:
                    if not self._may_go_on(channel, until):
                        break
                    if channel.link.holdings.kept.has(arrival.tag):
                        self._finish(channel, arrival)
                    done += 1
            except Exception as error:
                logger.warning(
                    "the final state of dropped messages cannot be stored, trying again: %s: %s",
                    type(error).__name__,
                    error,
                    extra={"event": "dropped_unfinished"},
                )
                self._paused_until = time.monotonic() + PAUSE_SECONDS
            finally:
                self._settle(channel, arrivals[:done], arrivals[done:])
        return done == len(arrivals)

    @staticmethod
    def _may_go_on(channel: EngineMixin, until: float) -> bool:
        """Return whether there is time for another, and what was taken is known to be ours."""
        holdings = channel.link.holdings
        is_sure = holdings.keeper is None or holdings.lease_guard.holds
        return is_sure and not holdings.is_stopping() and time.monotonic() < until

    def _settle(
        self, channel: EngineMixin, finished: Sequence[Arrival], left: Sequence[Arrival]
    ) -> None:
        endings = [Ending(arrival.queue, "done", arrival.tag) for arrival in finished]
        nothing_asked = Fetch(f"{self._name}:{next(self._calls)}:", ())
        channel.commands.exchange(channel.plain_client, Settlement(endings), nothing_asked)
        for queue in {arrival.queue for arrival in left}:
            entries = [Return(arrival.tag) for arrival in left if arrival.queue == queue]
            channel.commands.requeue(channel.plain_client, queue, entries)

    def _finish(self, channel: EngineMixin, arrival: Arrival) -> None:
        queue = arrival.queue.removesuffix(dropped_queue(""))
        try:
            message = decode(arrival.payload)
            policy = str((message.get("celeriac") or {}).get("dropped", ""))
            request = self._request(EngineMessage(message, channel=channel))
        except NO_MESSAGE as error:
            # Nobody can wait for a malformed message, and it must not hold up the others.
            logger.debug("queue %r dropped what is no task message: %s", queue, error)
            return
        try:
            finish(self._app, request, Dropped(queue, policy))
        except Exception as error:
            if _may_pass(self._app, request, error):
                raise
            logger.exception(
                "queue %r: that the dropped task %s has failed can never be stored",
                queue,
                request.id,
                extra={"event": "ending_raised"},
            )

    def _request(self, message: EngineMessage) -> Context:
        message.accept = self._accept
        headers, properties = message.headers, message.properties
        check_message(headers, message.payload, message.content_encoding)
        args, kwargs, embed = message.payload
        embed = embed or {}
        return Context(
            {key: value for key, value in headers.items() if value is not None},
            id=headers["id"],
            task=headers["task"],
            args=args,
            kwargs=kwargs,
            delivery_info=message.delivery_info,
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
            called_directly=False,
            **{key: embed.get(key) for key in ("callbacks", "errbacks", "chain", "chord")},
        )


def finish(app: Any, request: Context, error: Exception) -> None:
    """Store that a task failed without having run, and tell whoever depends on it.

    A success that is stored already stays: the message was another delivery of the same task.
    """
    task, backend = app.tasks.get(request.task), _backend_of(app, request)
    stores = _stores_errors(app, task, request)
    depends = request.chord or request.errbacks or request.chain
    if not stores and not depends:
        return
    with accepted_before(), at_once():
        if _has_succeeded(backend, request.id):
            return
        backend.mark_as_failure(request.id, error, request=request, store_result=stores)


def _backend_of(app: Any, request: Context) -> Any:
    task = app.tasks.get(request.task)
    return task.backend if task is not None else app.backend


def _may_pass(app: Any, request: Context, error: Exception) -> bool:
    """Return whether a server is away or refuses; else the task's own ending is what is wrong."""
    backend = _backend_of(app, request)
    if is_passing(error) or isinstance(error, OperationalError):
        return True
    if is_final(error) or isinstance(error, NO_MESSAGE):
        return False
    try:
        with at_once():
            _has_succeeded(backend, request.id)
    except Exception:
        return True  # the backend does not answer, whatever its errors are
    return False


def _stores_errors(app: Any, task: Any, request: Context) -> bool:
    ignores = request.ignore_result
    if task is None:
        return not (app.conf.task_ignore_result if ignores is None else ignores)
    if task.store_errors_even_if_ignored:
        return True
    return not (task.ignore_result if ignores is None else ignores)


def _has_succeeded(backend: Any, task_id: str) -> bool:
    # These two cannot be asked: one keeps nothing, the other would consume the answer.
    if isinstance(backend, DisabledBackend | RPCBackend):
        return False
    return bool(backend.get_state(task_id) == states.SUCCESS)
