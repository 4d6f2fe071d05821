"""Messages and their acknowledgement, as kombu sees them.

kombu's own restore paths are switched off: they requeue what is running when a connection blips.
What is held, and what becomes of it, is the business of the holdings.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

from routing.message.codec import check_inflated, loads
from routing.message.eta import was_kept
from routing.message.evidence import Evidence
from routing.redis.values import Mark
from routing.transport.link import Link


class EngineMessage(virtual.Message):
    """A message that knows how it ended.

    Attributes:
        is_held: this process held it when it came. What is consumed without acknowledgement, as
            from a broadcast, never is: there is nothing to end, to requeue, or to lose.
        ending: name of the counter that the ending belongs to; None means "done".
        ends_at_start: acknowledged early, so the broker must know before the task runs on.
        loss: how it killed its process; a message that is requeued then is charged a delivery.
        evidence: why it will not be tried again, should it end as failed or rejected.
        link: the database that it came from.
        was_kept: the broker kept it until its ETA; no clock of this machine is to hold it again.
        noted: what the engine has written on it on its way.
    """

    channel: Any
    link: Link
    is_held = True
    ending: str | None = None
    ends_at_start = False
    loss = ""
    evidence: Evidence | None = None

    @property
    def death(self) -> Evidence | None:
        """Why it becomes a dead letter when it is acknowledged; None when it does not."""
        return self.evidence if self.ending in ("failed", "rejected") else None

    def __init__(self, payload: Any, channel: Any, **kwargs: Any) -> None:
        if compression := (payload.get("headers") or {}).get("compression"):
            encoding = payload["properties"].get("body_encoding")
            check_inflated(channel.decode_body(payload["body"], encoding), compression)
        super().__init__(payload, channel=channel, **kwargs)
        self.was_kept = was_kept(payload)
        self.noted: Any = payload.get("celeriac")
        self.link = channel.link
        self.is_held = channel.has_fetched(self.delivery_tag)
        self.link.holdings.watch(self.delivery_tag, self)

    def _decode(self) -> Any:
        return loads(self.body, self.content_type, self.content_encoding, self.accept)

    def ack(self, multiple: bool = False) -> None:
        """Note the ending; the engine carries it to the broker within milliseconds."""
        holdings = self.link.holdings
        if (death := self.death) is not None:
            holdings.bury(self.delivery_tag, death)
        else:
            ending = self.ending or "done"
            holdings.end(self.delivery_tag, ending, at_once=self.ends_at_start)
        self._state = "ACK"

    def reject(self, requeue: bool = False) -> None:
        """End the message as a dead letter, or return it to its queue.

        A worker takes it again after a delay that doubles each time. It comes at once when it was
        lost with its process, from a worker that stops, and from other consumers.
        """
        holdings = self.link.holdings
        if requeue:
            waits = holdings.durable and not holdings.is_stopping()
            mark = Mark.LATER if waits else Mark.REDELIVERED
            mark = Mark.COUNTED if self.loss else mark
            holdings.requeue(self.delivery_tag, mark, self.loss)
        else:
            holdings.bury(self.delivery_tag, self.evidence or Evidence(reason="rejected"))
        self._state = "REQUEUED" if requeue else "REJECTED"


class EngineQoS(stock.QoS):
    """Acknowledgement without kombu's records and restores."""

    restore_at_shutdown = False

    def append(self, message: EngineMessage, delivery_tag: str) -> None:
        """Do nothing: the fetch recorded the message in the step that popped it."""

    def ack(self, delivery_tag: str) -> None:
        """End a message as done."""
        self.channel.basic_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """End a message as rejected, or return it to the front of its queue."""
        self.channel.basic_reject(delivery_tag, requeue=requeue)

    def can_consume(self) -> bool:
        """Return True: the credit of each queue decides, not one number for all."""
        return True

    def restore_unacked(self, client: Any = None) -> None:
        """Do nothing: what runs is kept, what waits is requeued by the holdings."""

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing: what runs is kept, what waits is requeued by the holdings."""
        self._on_collect.cancel()

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Do nothing: see `EngineMixin.basic_reject`."""

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Do nothing: delivery times say nothing about a message whose lease is renewed."""
