"""One fetched message on its way into kombu: decoded, checked, handed to its consumer.

Each message is decoded in its own ``try``: a malformed one is set aside and never ends the
worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from queue import Empty
from typing import Any

from celery.exceptions import InvalidTaskError
from kombu.exceptions import KombuError

from routing.inflight.held import State
from routing.message.codec import decode, wrap
from routing.message.eta import eta_of, in_ms, task_fields, was_kept
from routing.message.evidence import Evidence, of_error
from routing.message.validation import is_writable
from routing.redis.faults import ANY_FAULT, is_lost, is_passing
from routing.redis.values import NOT_COUNTED, Arrival, DeliveryCount, Mark
from routing.topology.names import dead_queue
from routing.transport.link import Link

logger = logging.getLogger(__name__)


#: What Celery and kombu raise on a malformed message: fields missing, or of another type.
NO_MESSAGE = (
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,  # a time beyond what a calendar holds
    RecursionError,
    AttributeError,
    KombuError,
    InvalidTaskError,
)


class Delivery:
    """Delivers what one channel fetched.

    Arguments:
        link: the database that it came from.
        consumer_of: returns what takes the messages of a queue, None for nobody.
        put_off: called when the server refuses what a delivery needs: nothing is fetched for a
            while.
        refuse: stores the failure of a message that has an id and cannot be taken in.
    """

    def __init__(
        self,
        link: Link,
        *,
        consumer_of: Callable[[str], Callable[[Any], Any] | None],
        put_off: Callable[[Exception], None],
        refuse: Callable[[str, Exception], None],
    ) -> None:
        self._link = link
        self._holdings = link.holdings
        self._consumer_of, self._put_off, self._refuse = consumer_of, put_off, refuse

    def deliver(self, arrival: Arrival) -> None:
        """Hand a message to its consumer; without one, or of a paused queue, it is requeued."""
        if self._holdings.get(arrival.tag) is None:
            return  # its lease ran out meanwhile: it is another worker's
        callback = self._consumer_of(arrival.queue)
        if callback is None or self._holdings.prefetch.table.queue(arrival.queue).paused:
            self._holdings.requeue(arrival.tag)
            return
        try:
            message = self.message(arrival)
            is_early = self._postpone(arrival, message)
        except Exception as error:
            if is_lost(error):
                raise
            self._refused(arrival, error)
        else:
            if not is_early:
                self._hand_on(arrival, callback, message)

    def _hand_on(self, arrival: Arrival, callback: Callable[[Any], Any], message: Any) -> None:
        try:
            callback(message)
        except Exception as error:
            if is_lost(error) or not self._holdings.durable:
                raise  # outside of a worker the rest is the application's own business
            self._refused(arrival, error)

    def _refused(self, arrival: Arrival, error: Exception) -> None:
        """Find out what became of a message that could not be taken in, and see to the rest."""
        held = self._holdings.get(arrival.tag)
        if held is None or held.state is not State.WAITING:
            # It has ended, and then its result could not be stored, for an id that cannot be one.
            logger.error(
                "queue %r: a message was refused, and its result could not be stored",
                arrival.queue,
                exc_info=error,
                extra={"event": "refusal_not_stored"},
            )
        elif isinstance(error, ANY_FAULT) or is_passing(error):
            # That is no fault of the message's: nothing is charged, and nothing buried.
            self._holdings.requeue(arrival.tag)
            self._put_off(error)
        elif isinstance(error, NO_MESSAGE):
            self._set_aside(arrival, error)
        else:
            logger.error(
                "queue %r: a message could not be taken in",
                arrival.queue,
                exc_info=error,
                extra={"event": "intake_failed"},
            )
            self._holdings.requeue(arrival.tag, Mark.LATER)

    def message_or_refuse(self, arrival: Arrival) -> dict[str, Any]:
        """Decode a message that was fetched by itself; a malformed one is set aside.

        Raises:
            queue.Empty: it was malformed.
        """
        try:
            return self.message(arrival)
        except NO_MESSAGE as error:
            self._refused(arrival, error)
            raise Empty() from error

    def message(self, arrival: Arrival) -> dict[str, Any]:
        """Decode a message for kombu, under the tag that it is held by."""
        message: dict[str, Any] = decode(arrival.payload)
        properties = message["properties"]
        properties["delivery_tag"] = arrival.tag
        noted = message.get("celeriac") or {}
        message_id = _as_id((message.get("headers") or {}).get("id"))
        at = noted.get("at")
        count, returned = NOT_COUNTED, 0
        if len(noted) > 1:
            charged = _number(noted, "deliveries"), str(noted.get("charged") or "")
            count, returned = DeliveryCount(*charged), _number(noted, "returned")
        self._holdings.identify(
            arrival.tag,
            message_id,
            delivery_count=count,
            at_ms=at if isinstance(at, int) else 0,
            returned=returned,
        )
        if noted.get("redelivered"):
            properties["delivery_info"]["redelivered"] = True
            message["headers"]["redelivered"] = True
        return message

    def _postpone(self, arrival: Arrival, message: dict[str, Any]) -> bool:
        """Let the broker keep a message until its ETA, when its producer did not; say whether."""
        fields = task_fields(message)
        if not fields or was_kept(message) or (eta := eta_of(fields)) is None:
            return False
        self._link.commands.postpone(
            self._link.client,
            arrival.queue,
            arrival.tag,
            message_id=_as_id(fields.get("id")),
            due_ms=in_ms(eta),
        )
        # It is no longer unacknowledged, so this frees the credit and counts nothing.
        self._holdings.end(arrival.tag, "postponed")
        return True

    def _bury(self, arrival: Arrival, evidence: Evidence, payload: str = "") -> None:
        """End a message as a dead letter; what its result needs is the caller's business."""
        self._holdings.bury(arrival.tag, evidence, payload)

    def _set_aside(self, arrival: Arrival, error: Exception) -> None:
        """Keep a malformed message: it must neither end the worker nor vanish."""
        evidence = of_error("undecodable", error, queue=arrival.queue)
        self._bury(arrival, evidence, wrap(arrival.payload, queue=arrival.queue))
        logger.error(
            "queue %r: not a task message, kept in queue %r: %s: %s; it begins %r",
            arrival.queue,
            dead_queue(arrival.queue),
            type(error).__name__,
            error,
            arrival.payload[:200],
            extra={"event": "message_undecodable"},
        )
        if task_id := _message_id(arrival):
            self._refuse(task_id, error)


def _message_id(arrival: Arrival) -> str:
    return _as_id(_headers_of(arrival).get("id"))


def _headers_of(arrival: Arrival) -> Mapping[str, Any]:
    """Return the headers of what has been fetched; none for a malformed one."""
    try:
        headers = decode(arrival.payload)["headers"]
    except NO_MESSAGE:
        return {}
    return headers if isinstance(headers, dict) else {}


def _number(noted: Mapping[str, Any], name: str) -> int:
    """Return a number that our scripts have noted on a message, 0 for none."""
    return value if isinstance(value := noted.get(name), int) else 0


def _as_id(value: Any) -> str:
    """Return a message's id; none for what cannot be one, such as lists nested a thousand deep."""
    return value if isinstance(value, str) and is_writable(value) else ""
