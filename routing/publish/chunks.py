"""Makes and sends the messages of one chunk of a bulk call.

Messages are written while the items are read, so that an iterable may yield the same object again
with other contents, as a loop of ``delay`` allows. `Filled` writes them into one envelope; `Made`
lets Celery make each one, with its signals, where that is wanted; `Published` publishes each one
at once, on other brokers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from kombu import Producer
from kombu.exceptions import OperationalError, SerializationError
from kombu.utils.json import dumps

from routing import upstream
from routing.errors import MessageTooLarge, QueueFull, RoutingError
from routing.message.eta import Delay
from routing.message.exemption import is_exempt
from routing.message.gate import marked
from routing.publish.attempt import unreachable
from routing.publish.capture import Line, Outgoing
from routing.publish.gates import marker_for
from routing.publish.levels import granted_by, note_downgrade
from routing.publish.receipts import Refusal
from routing.publish.template import Envelope, Representation, new_ids
from routing.redis.bounds import Terms
from routing.transport.gathering import Destination
from routing.transport.overflow import Overflow


class Writer(Protocol):
    """Takes the items of one chunk, then sends what they became."""

    def add(
        self, position: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Take an item; what it raises refuses the item."""

    def send(self) -> Refused:
        """Send what was taken; returns what the broker refused."""


def writer_for(line: Line) -> Writer:
    """Return what writes and sends a chunk in the quickest way that tells everybody.

    Raises:
        UnknownLevel: the call asks for a level that is not served.
        BrokerUnreachable: the broker is away.
    """
    transport = line.producer.connection.get_transport_cls()
    # Channels of other transports have no overflow, and some (AMQP) have no class to look at.
    if not hasattr(getattr(transport, "Channel", None), "overflow"):
        return Published(line)
    if line.call.is_watched or line.call.is_customised:
        return Made(line)
    task_id = new_ids(1)[0]
    specimen = line.make(task_id, (), {})
    is_protocol_2 = isinstance(specimen.body, tuple) and len(specimen.body) == 3
    if specimen.options["exchange"] or not is_protocol_2:
        return Published(line)
    return Filled(line, specimen, task_id)


class Filled:
    """The quick way: one envelope, filled many times, pushed in one call."""

    def __init__(self, line: Line, specimen: Outgoing, task_id: str) -> None:
        self._line = line
        self._options = specimen.options
        self._positions: list[int] = []
        self._ids: list[str] = []
        self._payloads: list[str] = []
        self._tags: list[str] = []
        # Opens the connection, which the envelope asks for the form of a message.
        line.ensure(lambda: line.producer.channel, specimen.options)
        amqp, options = line.call.app.amqp, line.call.publish_options
        levels = line.call.app.conf.task_repr_maxlevels
        self._envelope = Envelope(
            line.capture,
            specimen,
            task_id=task_id,
            args_repr=Representation(max_length=amqp.argsrepr_maxsize, max_levels=levels),
            kwargs_repr=Representation(max_length=amqp.kwargsrepr_maxsize, max_levels=levels),
            keep_reprs=frozenset({"argsrepr", "kwargsrepr"} & options.keys()),
            mark=marker_for(line.call.app, line.call.name),
        )

    def add(
        self, position: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Write an item into the envelope."""
        if not self._tags:
            self._tags = new_ids(100)
        try:
            payload = self._envelope.fill(task_id, self._tags.pop(), args, kwargs)
        except Exception as error:
            raise NotSerializable(error) from error
        self._payloads.append(payload)
        self._positions.append(position)
        self._ids.append(task_id)

    def send(self) -> Refused:
        """Push the payloads in one call."""
        if not self._payloads:
            return {}
        envelope = self._envelope
        destination = Destination(
            queue=envelope.queue,
            priority=envelope.priority,
            exempt=is_exempt(envelope.headers),
            delayed=envelope.eta is not None,
        )
        payloads: Sequence[str | Delay] = self._payloads
        if (eta := envelope.eta) is not None:
            payloads = [
                Delay(eta, i, payload) for i, payload in zip(self._ids, self._payloads, strict=True)
            ]
        self._line.tell_backend(self._ids)
        # The router was asked once, for all of them.
        if (granted := granted_by(envelope.headers)) is not None and len(self._ids) > 1:
            note_downgrade(self._line.call.name, granted, len(self._ids) - 1)

        shipment = Shipment(destination, self._positions, payloads)

        def publish() -> Refused:
            self._line.declare(envelope.declare, self._options)
            return shipment.send(self._line.producer.channel)

        refused: Refused = self._line.ensure(publish, self._options)
        return refused


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    position: int
    task_id: str
    outgoing: Outgoing
    destination: Destination
    payload: str | Delay
    declare: Sequence[Any]


class Made:
    """Each message made on its own, with its signals and events; pushed together.

    Its signals come as a pair around the making, as a tracer's spans must not overlap. So the one
    after says that the message is on its way; whether the queue took it is told by its receipt.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._messages: list[_Message] = []
        self._is_open = False

    def add(
        self, position: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Make the message of an item."""
        outgoing = self._line.make(task_id, args, kwargs)
        with self._line.telling(outgoing):
            self._messages.append(self._made(position, task_id, outgoing))

    def _made(self, position: int, task_id: str, outgoing: Outgoing) -> _Message:
        line = self._line
        if not self._is_open:
            line.ensure(lambda: line.producer.channel, outgoing.options)
            self._is_open = True
        channel = line.producer.channel
        try:
            prepared = line.capture.prepare(outgoing)
            message = prepared.message
            upstream.AUGMENT.of(channel)(message, prepared.exchange, prepared.routing_key)
            eta = channel.take_eta(prepared.routing_key, message)
            payload = marked(message, dumps)
        except Exception as error:
            raise NotSerializable(error) from error
        destination = Destination(
            queue=prepared.routing_key,
            priority=upstream.PRIORITY.of(channel)(message, reverse=False),
            exempt=is_exempt(outgoing.headers),
            delayed=eta is not None,
        )
        return _Message(
            position=position,
            task_id=task_id,
            outgoing=outgoing,
            destination=destination,
            payload=payload if eta is None else Delay(eta, task_id, payload),
            declare=prepared.declare,
        )

    def send(self) -> Refused:
        """Push the messages, a call for each run of one queue and priority."""
        if not self._messages:
            return {}
        if not self._line.call.is_customised:
            self._line.tell_backend([message.task_id for message in self._messages])
        refused: Refused = {}
        for destination, run in groupby(self._messages, key=lambda message: message.destination):
            refused.update(self._send_run(destination, list(run)))
        for message in self._messages:
            if message.position not in refused:
                self._line.send_event(message.outgoing)
        return refused

    def _send_run(self, destination: Destination, run: list[_Message]) -> Refused:
        options = run[0].outgoing.options
        shipment = Shipment(destination, [m.position for m in run], [m.payload for m in run])

        def publish() -> Refused:
            self._line.declare(run[0].declare, options)
            return shipment.send(self._line.producer.channel)

        refused: Refused = self._line.ensure(publish, options)
        return refused


class Published:
    """Each message published at once: on brokers other than Redis, and to explicit exchanges."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def add(
        self, position: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Publish an item."""
        outgoing = self._line.make(task_id, args, kwargs)
        with self._line.telling(outgoing):
            self._publish(task_id, outgoing)
        self._line.send_event(outgoing)

    def _publish(self, task_id: str, outgoing: Outgoing) -> None:
        line = self._line
        if not line.call.is_customised:
            line.tell_backend([task_id])
        connection = line.producer.connection
        errors = (OperationalError, *connection.recoverable_connection_errors)
        try:
            Producer.publish(line.producer, outgoing.body, **outgoing.options)
        except SerializationError as error:
            raise NotSerializable(error) from error
        except errors as error:
            raise unreachable(error, connection) from error

    def send(self) -> Refused:
        """Nothing is left to send."""
        return {}


class NotSerializable(Exception):
    """Why the arguments of an item cannot be written."""

    def __str__(self) -> str:
        return f"the arguments cannot be serialized: {self.args[0]}"


class NotRoutable(Exception):
    """Why an item that says its own level goes nowhere."""


def reason(error: Exception) -> Refusal:
    """Return why an item was refused, for its receipt.

    Raises:
        RoutingError: it is no fault of the item, so the call ends.
    """
    match error:
        case QueueFull():
            return Refusal("full", str(error))
        case MessageTooLarge():
            return Refusal("too_large", str(error))
        case NotSerializable() | NotRoutable():
            return Refusal("invalid", str(error))
        case RoutingError():
            raise error
    return Refusal("invalid", f"{type(error).__name__}: {error}")


#: Position of an item in its chunk -> why it was refused.
Refused = dict[int, Refusal]


class Shipment:
    """The payloads of a chunk that travel together.

    A blocked producer may wait for long, piece by piece, and lose its connection meanwhile: sent
    again, the shipment goes on where the queue stopped.

    Arguments:
        destination: what the payloads share.
        positions: the positions of the items in their chunk.
        payloads: their messages.
    """

    def __init__(
        self, destination: Destination, positions: Sequence[int], payloads: Sequence[str | Delay]
    ) -> None:
        self._destination = destination
        self._positions = list(positions)
        self._payloads = list(payloads)
        self._refused: Refused = {}

    def send(self, channel: Any) -> Refused:
        """Push what is left; refuse what is too large, or what the queue has no room for."""
        destination = self._destination
        overflow: Overflow = channel.overflow(destination)
        if not destination.exempt and overflow.largest is not None:
            self._refuse_too_large(overflow)
        if not self._payloads:
            return self._refused
        terms: Terms = "exempt" if destination.exempt else ""
        count = len(self._payloads)
        pushed = overflow.push(tuple(self._payloads), terms, took=self._took)
        if self._positions:
            full = Refusal("full", str(overflow.full(pushed, count)))
            self._refused.update(dict.fromkeys(self._positions, full))
        return self._refused

    def _took(self, count: int) -> None:
        del self._positions[:count]
        del self._payloads[:count]

    def _refuse_too_large(self, overflow: Overflow) -> None:
        kept: list[tuple[int, str | Delay]] = []
        for position, payload in zip(self._positions, self._payloads, strict=True):
            try:
                overflow.check_size(payload)
            except MessageTooLarge as error:
                self._refused[position] = Refusal("too_large", str(error))
            else:
                kept.append((position, payload))
        self._positions = [position for position, _ in kept]
        self._payloads = [payload for _, payload in kept]
