"""A producer that keeps what it should publish: Celery makes the message, nobody sends it yet.

This is how a bulk call gets exactly the message that ``apply_async`` would publish, without a copy
of the logic that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kombu import Producer


@dataclass(slots=True, kw_only=True)
class Outgoing:
    """One message on its way: the arguments of ``Producer.publish`` and of its event."""

    body: Any
    options: dict[str, Any]
    sent_event: dict[str, Any] | None = None
    event_dispatcher: Any = None

    @property
    def headers(self) -> dict[str, Any]:
        """The message's headers, as ``before_task_publish`` left them."""
        headers: dict[str, Any] = self.options["headers"]
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A message as a channel takes it, with where it goes."""

    message: dict[str, Any]
    exchange: str
    routing_key: str
    declare: list[Any] = field(default_factory=list)


class _Captured(BaseException):
    """Leaves Celery's publishing code when the message is complete.

    Not an Exception, so that an ``apply_async`` of somebody's own that handles errors lets it pass.
    """


class Capture(Producer):
    """Takes the place of a producer of the same connection."""

    def __init__(self, producer: Any) -> None:
        self.real = producer
        super().__init__(
            None,
            exchange=producer.exchange,
            routing_key=producer.routing_key,
            serializer=producer.serializer,
            auto_declare=producer.auto_declare,
            compression=producer.compression,
        )
        self.__connection__ = producer.connection
        self._sent: tuple[dict[str, Any] | None, Any] = (None, None)
        self._outgoing: Outgoing | None = None

    @property
    def channel(self) -> Any:
        """The channel of the real producer."""
        return self.real.channel

    def take(self, send: Callable[[], Any]) -> Outgoing:
        """Call something that publishes one message with this producer; return the message.

        Raises:
            RuntimeError: it published nothing.
        """
        self._outgoing = None
        self._sent = (None, None)
        try:
            send()
        except _Captured:
            pass
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is None:
            raise RuntimeError("apply_async did not publish with the producer that it was given")
        return outgoing

    def note_event(self, sent_event: dict[str, Any] | None, options: dict[str, Any]) -> None:
        """Keep the ``task-sent`` event of the message that comes next."""
        if sent_event is not None:
            queue = options.get("queue")
            sent_event["queue"] = getattr(queue, "name", queue)
        self._sent = (sent_event, options.get("event_dispatcher"))

    def publish(self, body: Any, **options: Any) -> Any:
        """Keep the message, and leave."""
        event, dispatcher = self._sent
        self._outgoing = Outgoing(
            body=body, options=options, sent_event=event, event_dispatcher=dispatcher
        )
        raise _Captured

    def prepare(self, outgoing: Outgoing) -> Prepared:
        """Return the message as the channel would take it; needs a connection."""
        options = {**outgoing.options, "retry": False, "headers": dict(outgoing.headers)}
        prepared: Prepared = super().publish(outgoing.body, **options)
        return prepared

    def _publish(
        self,
        body: Any,
        priority: int | None,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        exchange: str,
        declare: list[Any],
        *_: Any,
        **__: Any,
    ) -> Prepared:
        channel = self.real.channel
        message = channel.prepare_message(
            body, priority, content_type, content_encoding, headers, dict(properties)
        )
        return Prepared(
            message=message, exchange=exchange, routing_key=routing_key, declare=list(declare)
        )
