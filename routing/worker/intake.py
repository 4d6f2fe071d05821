"""From a delivered message to its task's strategy, without a promise in between.

Celery wraps the acknowledgement of every message into promises that hop into the consumer's loop,
because on its brokers an ack writes to a socket. Here an ack only notes an ending, from any thread;
the promises would cost more than the message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import InvalidTaskError, NotRegistered
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message

from routing.message.evidence import Evidence, of_error
from routing.message.validation import is_writable
from routing.topology.names import dead_queue
from routing.transport.message import EngineMessage
from routing.worker.clerk import CLERK
from routing.worker.failure import forget_frames
from routing.worker.outage import CutOff

logger = logging.getLogger(__name__)


def task_handler(consumer: Any) -> Callable[[], Callable[[Any], Any]]:
    """Return what takes the place of a consumer's ``create_task_handler``.

    Messages of other transports, of protocol 1 and of unknown tasks go Celery's own way.
    """
    _leave_evidence(consumer)
    create_stock_handler = consumer.create_task_handler

    def create_task_handler() -> Callable[[Any], Any]:
        handle_as_stock = create_stock_handler()
        strategies = consumer.strategies
        callbacks = consumer.on_task_message

        def on_task_received(message: Any) -> Any:
            strategy = _strategy(strategies, message)
            if strategy is None:
                return handle_as_stock(message)
            try:
                strategy(message, None, message.ack_log_error, message.reject_log_error, callbacks)
            except (InvalidTaskError, ContentDisallowed) as error:
                consumer.on_invalid_task(None, message, error)
            except DecodeError as error:
                consumer.on_decode_error(message, error)
            return None

        return on_task_received

    return create_task_handler


def _leave_evidence(consumer: Any) -> None:
    """Have what Celery's consumer refuses become dead letters: it would only log them."""
    names = {
        "on_unknown_message": "undecodable",
        "on_unknown_task": "unknown_task",
        "on_invalid_task": "undecodable",
        "on_decode_error": "undecodable",
    }
    for name, reason in names.items():
        setattr(consumer, name, _with_evidence(consumer, getattr(consumer, name), reason))


def _with_evidence(consumer: Any, refuse: Callable[..., Any], reason: Any) -> Callable[..., Any]:
    def refuse_with_evidence(*arguments: Any) -> Any:
        message = next(one for one in arguments if isinstance(one, Message))
        if not isinstance(message, EngineMessage):
            return refuse(*arguments)
        given = next((one for one in arguments if isinstance(one, Exception)), None)
        message.ending = "rejected"
        message.evidence = _evidence(message, reason, given, worker=consumer.hostname)
        _say_kept(message, reason)
        error = given or InvalidTaskError("it is no task message")

        def refuse_surely() -> None:
            if reason == "undecodable":  # Celery stores it for an unknown task
                _store_refusal(consumer.app, _id_of(message), str(error))
            try:
                raise error  # Celery logs what is being handled
            except Exception:
                refuse(*arguments)
            finally:
                forget_frames(error)

        CLERK.do(consumer.app, partial(_then_reject, message, refuse_surely))
        return None

    return refuse_with_evidence


def _then_reject(message: EngineMessage, refuse: Callable[[], None]) -> None:
    """Refuse a message, which is rejected when its result is stored, not before."""
    rejections: list[Callable[[], Any]] = []
    reject = message.reject_log_error
    message.reject_log_error = lambda *args, **options: rejections.append(
        partial(reject, *args, **options)
    )
    try:
        refuse()
    except CutOff:
        return  # the worker ends, and the message is requeued
    except Exception:
        logger.exception(
            "the failure of a refused message cannot be stored",
            extra={"event": "refusal_not_stored"},
        )
    finally:
        del message.reject_log_error  # else it is in a cycle
    if not rejections and not message.acknowledged:  # Celery could not even say what it is
        message.reject()
    for owed in rejections:
        owed()


def refused(app: Any, task_id: str, error: Exception) -> None:
    """Store soon that a message was refused, so that nobody waits for its result for ever."""
    CLERK.do(app, partial(_store_refusal, app, task_id, str(error)))


def _store_refusal(app: Any, task_id: str, reason: str) -> None:
    if not task_id or not is_writable(task_id):
        return
    try:
        app.backend.mark_as_failure(task_id, InvalidTaskError(reason))
    except CutOff:
        raise
    except Exception:
        logger.exception(
            "the failure of a refused message cannot be stored",
            extra={"event": "refusal_not_stored"},
        )


def _id_of(message: EngineMessage) -> str:
    """Return the id of a message, "" for none: in its headers, for protocol 1 in its body."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    found = headers.get("id")
    if found is None:
        try:
            found = message.payload.get("id")
        except Exception:  # it cannot be decoded, or is no object
            return ""
    return found if isinstance(found, str) else ""


def _say_kept(message: EngineMessage, reason: str) -> None:
    """Say where it is, as Celery's own line says that it is gone."""
    if not message.is_held:
        return
    queue = (message.delivery_info or {}).get("routing_key") or ""
    if message.link.holdings.topology.queue(queue).max_dead:
        logger.error(
            "queue %r: a message that cannot be run (%s) is kept in queue %r",
            queue,
            reason,
            dead_queue(queue),
            extra={"event": "message_refused", "reason": reason},
        )


def _evidence(
    message: EngineMessage, reason: Any, error: Exception | None, *, worker: str
) -> Evidence:
    headers = message.headers if isinstance(message.headers, dict) else {}
    task = headers.get("task", "")
    if reason == "unknown_task":
        error = NotRegistered(task)
    error = error or InvalidTaskError("it is no task message")
    return of_error(reason, error, task=task, task_id=headers.get("id"), worker=worker)


def _strategy(strategies: dict[str, Any], message: Any) -> Any:
    if not isinstance(message, EngineMessage):
        return None
    try:
        return strategies.get(message.headers["task"])
    except (KeyError, TypeError):
        return None
