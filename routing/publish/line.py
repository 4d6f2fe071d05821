"""The way to the broker for one chunk of a bulk call: a producer, and Celery's code around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery.backends.base import Backend
from kombu.exceptions import OperationalError

from routing.publish.amqp import tell_after, unreachable
from routing.publish.call import Call
from routing.publish.capture import Capture, Outgoing


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
        dispatcher = outgoing.event_dispatcher or self.call.app.amqp._event_dispatcher
        event.update(exchange=options["exchange"], routing_key=options["routing_key"])
        dispatcher.publish(
            "task-sent",
            event,
            self.producer,
            retry=options.get("retry"),
            retry_policy=options.get("retry_policy"),
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
