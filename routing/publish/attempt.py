"""An attempt to publish: made again after a lost connection, and told of when it has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import signals
from kombu.exceptions import OperationalError

from routing.errors import BrokerUnreachable
from routing.transport.schemes import stock_url


class Attempt:
    """A producer that remembers what it could not publish, to close what tracers have opened.

    Celery sends ``before_task_publish``, publishes, and then sends ``after_task_publish``: not when
    publishing failed.
    """

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._failed: tuple[Any, dict[str, Any]] | None = None
        self._is_published = False

    @classmethod
    def of(cls, producer: Any) -> Any:
        """Return an attempt of a producer, itself where nobody wants to know of it."""
        return cls(producer) if signals.after_task_publish.receivers else producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **options: Any) -> Any:
        """Publish; the first message is the task's, what follows are its events."""
        if self._is_published:
            return self._producer.publish(body, **options)
        self._failed = body, options
        published = self._producer.publish(body, **options)
        self._failed, self._is_published = None, True
        return published

    def tell(self, name: str, error: Exception) -> None:
        """Send the signal that Celery leaves out when a message of this task was not published."""
        if self._failed is not None:
            tell_after(name, *self._failed, error)


def tell_after(
    name: str, body: Any, options: Mapping[str, Any], error: Exception | None = None
) -> None:
    """Send Celery's ``after_task_publish`` for a message.

    Arguments:
        name: the task's name.
        body: the message's body.
        options: the options that it is published with.
        error: why it was not published; a receiver gets it as ``error``, which Celery's own signal
            does not have.
    """
    signals.after_task_publish.send(
        sender=name,
        body=body,
        headers=options["headers"],
        exchange=options["exchange"],
        routing_key=options["routing_key"],
        **({} if error is None else {"error": error}),
    )


def unreachable(error: BaseException, connection: Any) -> BrokerUnreachable:
    """Return the error that says which broker did not answer, and what to do."""
    cause = str(error).strip() or type(error).__name__
    return BrokerUnreachable(
        f"the broker at {stock_url(connection.as_uri())} did not take the message: "
        f"{cause.rstrip('.')}; start the broker, or correct broker_url (or "
        "CELERY_BROKER_URL, which beats it)"
    )


def ensure(producer: Any, publish: Callable[[], Any], options: Mapping[str, Any]) -> Any:
    """Call what publishes, again after a lost connection, as ``Producer.publish`` does.

    Arguments:
        producer: whose connection it uses.
        publish: what publishes.
        options: publishing options; ``retry`` and ``retry_policy`` count.

    Raises:
        BrokerUnreachable: the retries of the publish policy are spent.
    """
    connection = producer.connection
    errors = (OperationalError, *connection.recoverable_connection_errors)
    policy = options.get("retry_policy") or {}
    try:
        if not options.get("retry"):
            return publish()
        connection.transport_options.update(policy)
        return connection.ensure(producer, publish, **policy)()
    except errors as error:
        raise unreachable(error, connection) from error
