"""The writers of one chunk of a bulk call: one for each wish that its items have.

Where all items go at one level there is one writer, made before an item is read, so that what no
queue serves ends the call. Where each item says its own level, what is not served is the item's
fault, and its receipt says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from routing.errors import LevelPolicyFailed, UnknownLevel
from routing.publish.call import Call, Wish
from routing.publish.capture import Line
from routing.publish.chunks import NotRoutable, Refused, Writer, writer_for


class Writers:
    """Takes the items of one chunk, each into the writer of its wish, then sends them.

    Arguments:
        call: the bulk call.
        producer: the way to the broker.

    Raises:
        UnknownLevel: the whole call asks for a level that is not served.
        BrokerUnreachable: the broker is away.
    """

    def __init__(self, call: Call, producer: Any) -> None:
        self._call = call
        self._producer = producer
        self._writers: dict[Wish, Writer] = {}
        self._only = None if call.varying else self._writer(())

    def add(
        self,
        item: Any,
        position: int,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Take an item; what it raises refuses the item."""
        if self._only is not None:
            self._only.add(position, task_id, args, kwargs)
            return
        with refusing_the_item():
            self._writer(self._call.wish_of(item)).add(position, task_id, args, kwargs)

    def send(self) -> Refused:
        """Send what was taken, level by level; returns what the broker refused."""
        refused: Refused = {}
        for writer in self._writers.values():
            refused.update(writer.send())
        return refused

    def _writer(self, wish: Wish) -> Writer:
        writer = self._writers.get(wish)
        if writer is None:
            line = Line(self._call.for_items(wish), self._producer)
            writer = self._writers[wish] = writer_for(line)
        return writer


@contextmanager
def refusing_the_item() -> Iterator[None]:
    """Let a level that cannot be had be the fault of the item that asks for it."""
    try:
        yield
    except (UnknownLevel, LevelPolicyFailed) as error:
        raise NotRoutable(str(error)) from error
