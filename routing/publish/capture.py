"""A producer that keeps what it should publish: Celery makes the message, nobody sends it yet.

This is how a bulk call gets exactly the message that ``apply_async`` would publish, without a copy
of the logic that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery.backends.base import Backend
from kombu import Producer

from routing import upstream
from routing.publish.attempt import ensure, tell_after
from routing.publish.call import Call


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


class Line:
    """The way to the broker for one chunk: a producer, and Celery's code that makes messages."""

    def __init__(self, call: Call, producer: Any) -> None:
        self.call = call
        self.producer = producer
        self.capture = Capture(producer)

    def make(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Outgoing:
        """Let Celery make a message; nobody is told and nothing sent so far."""
        task = self.call.task
        if task is not None and self.call.is_customised:
            options = {"add_to_parent": False, **self.call.options, "producer": self.capture}
            options.pop("connection", None)
            return self.capture.take(
                lambda: task.apply_async(args, kwargs, task_id=task_id, **options)
            )
        # The result backend is told when all of the chunk is known.
        options = {**self.call.publish_options, "ignore_result": True}
        outgoing = self.capture.take(
            lambda: self.call.app.send_task(
                self.call.name,
                args,
                kwargs,
                task_id=task_id,
                producer=self.capture,
                task_type=task,
                **options,
            )
        )
        if "ignore_result" in outgoing.headers:
            outgoing.headers["ignore_result"] = self.call.publish_options.get("ignore_result")
        return outgoing

    def ensure(self, publish: Callable[[], Any], options: Mapping[str, Any]) -> Any:
        """Call what publishes; see `ensure`."""
        return ensure(self.producer, publish, options)

    def declare(self, entities: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Declare what a message needs, once a connection."""
        policy = options.get("retry_policy") or {}
        for entity in entities:
            self.producer.maybe_declare(entity, retry=options.get("retry"), **policy)

    def tell_backend(self, task_ids: Sequence[str]) -> None:
        """Tell the result backend about calls whose results it may be asked for.

        A backend that pushes results subscribes to a result when somebody waits for it; telling it
        about one call lets it declare what it needs (the rpc backend's reply queue).
        """
        task = self.call.task
        backend = self.call.app.backend if task is None else task.backend
        is_told = type(backend).on_task_call is not Backend.on_task_call
        if self.call.publish_options.get("ignore_result") or not is_told:
            return
        for task_id in task_ids[:1] if hasattr(backend, "result_consumer") else task_ids:
            backend.on_task_call(self.producer, task_id)

    @contextmanager
    def telling(self, outgoing: Outgoing) -> Iterator[None]:
        """Send a message's after-signal when the work here is done, with the error that ends it.

        The signal before has been sent: a tracer keeps a span open until its counterpart comes.
        """
        try:
            yield
        except Exception as error:
            tell_after(self.call.name, outgoing.body, outgoing.options, error)
            raise
        tell_after(self.call.name, outgoing.body, outgoing.options)

    def send_event(self, outgoing: Outgoing) -> None:
        """Send the ``task-sent`` event of a message that the broker has, where that is on."""
        options = outgoing.options
        if (event := outgoing.sent_event) is None:
            return
        dispatcher = outgoing.event_dispatcher or upstream.EVENT_DISPATCHER.of(self.call.app.amqp)
        event.update(exchange=options["exchange"], routing_key=options["routing_key"])
        dispatcher.publish(
            "task-sent",
            event,
            self.producer,
            retry=options.get("retry"),
            retry_policy=options.get("retry_policy"),
        )
