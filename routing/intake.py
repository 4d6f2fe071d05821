"""From a delivered message to its task's strategy, without a promise in between.

Celery wraps the acknowledgement of every message into promises that hop into the consumer's loop,
because on its brokers an ack writes to a socket. Here an ack only notes an ending, from any thread;
the promises would cost more than the message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import InvalidTaskError
from kombu.exceptions import ContentDisallowed, DecodeError

from routing.redis.message import EngineMessage


def task_handler(consumer: Any) -> Callable[[], Callable[[Any], Any]]:
    """Return what takes the place of a consumer's ``create_task_handler``.

    Messages of other transports, of protocol 1 and of unknown tasks go Celery's own way.
    """
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


def _strategy(strategies: dict[str, Any], message: Any) -> Any:
    if not isinstance(message, EngineMessage):
        return None
    try:
        return strategies.get(message.headers["task"])
    except (KeyError, TypeError):
        return None
