"""Many messages in few round trips: `enqueue_many`, ``delay_many`` and ``apply_many``.

Items are read in chunks of at most 500 items and half a second; a chunk is one call of the broker.
Each item gets a receipt:

- an item that cannot be a message (not JSON, wrong arguments, an invalid model) is refused; the
  others go on;
- ``priority`` and ``low_priority`` may be functions of the item, so that items of one call go at
  levels of their own. A chunk is then one call of the broker for each of its levels. An item whose
  level is not served, or whose function raises, is refused;
- when the queue is full, the rest of the chunk is refused, and the next chunk is tried, as workers
  make room all the time. Nothing is refused without a receipt. A queue with ``overflow = "block"``
  is waited for first, as long as it makes room;
- a chunk whose answer was lost with the connection is sent again by Celery's publish retry policy,
  so some of its messages may arrive twice, as with ``apply_async``. When the retries are spent,
  `BrokerUnreachable` carries the receipts of the chunks before; the last chunk may have arrived.

When somebody listens to the publish signals, ``task_send_sent_event`` is on, or the task has an
``apply_async`` of its own, every message is made on its own, and the messages still travel
together. ``before_task_publish`` and ``after_task_publish`` come in pairs, message by message, when
it is handed to its chunk: whether the queue took it is told by its receipt. A message that could
not be made or published has its ``after_task_publish`` too, with the exception as ``error``. On
brokers that are not Redis messages are published one after another over one connection.

Inside a task, the messages do not become its children (``result.children`` of a hundred thousand
ids would be stored with its result); ``add_to_parent=True`` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from time import monotonic
from typing import Any

from routing import upstream
from routing.errors import BrokerUnreachable
from routing.publish.call import Arguments, Call
from routing.publish.chunks import Refused, reason
from routing.publish.receipts import Receipts
from routing.publish.template import new_ids
from routing.publish.writers import Writers, refusing_the_item

#: Items of one call: large enough that the round trip costs little for each, small enough that the
#: server is not held for more than a few milliseconds and that a lost answer repeats little.
CHUNK = 500

#: Seconds after which a chunk is sent although it is not full, when the items come slowly.
CHUNK_SECONDS = 0.5


def enqueue_many(
    app: Any, task_name: str, items: Iterable[Sequence[Any]], **options: Any
) -> Receipts:
    """Send a task many times, by name.

    Arguments:
        app: an app with a queue table (`install`).
        task_name: the task's name; the task need not be known here.
        items: the positional arguments of each message, as a tuple or list. Any iterable; it is
            streamed.
        options: what ``apply_async`` takes, for all messages alike (``queue``, ``priority``,
            ``countdown``, ...); ``priority`` and ``low_priority`` also as functions of the item.

    Returns:
        A receipt for every item, in order.

    Raises:
        UnknownLevel: the level is not served for this task; nothing was published.
        BrokerUnreachable: the broker is away; its ``receipts`` are those of what was sent before.
    """
    task = upstream.APP_TASKS.of(app).get(task_name)
    return send(Call(app=app, name=task_name, task=task, options=options, read=_positional), items)


def _positional(item: Any) -> Arguments:
    if not isinstance(item, (tuple, list)):
        raise TypeError(f"expected a tuple of arguments, got {type(item).__name__}")
    return item, {}


def send(call: Call, items: Iterable[Any]) -> Receipts:
    """Send the items of a call, chunk by chunk; an error of the iterable ends it, after what came
    before was sent."""
    if isinstance(items, (str, bytes, Mapping)):
        raise TypeError(
            f"expected an iterable of items, got one {type(items).__name__}: put it into a list"
        )
    receipts = Receipts()
    if call.is_eager:
        _run_eagerly(call, items, receipts)
        return receipts
    source = iter(items)
    # The first item decides when a chunk begins: its ETA counts from then.
    for first in _noting(source, receipts):
        chunk = _Chunk(call, chain([first], source))
        try:
            with producer_for(call.app, call.options) as producer:
                chunk.send(Writers(call, producer))
        except BrokerUnreachable as error:
            raise BrokerUnreachable(str(error), receipts) from error.__cause__
        receipts.extend(chunk.ids, chunk.refused)
        if chunk.error is not None:
            _note(chunk.error, receipts)
            raise chunk.error
    return receipts


def _noting(source: Iterator[Any], receipts: Receipts) -> Iterator[Any]:
    """Yield the first item of each chunk; an error says what was sent before it."""
    try:
        yield from source
    except Exception as error:
        _note(error, receipts)
        raise


def _note(error: Exception, receipts: Receipts) -> None:
    error.add_note(f"before this, the bulk call sent what it had read: {receipts!r}")


class _Chunk:
    """The next items of an iterable, on their way."""

    def __init__(self, call: Call, items: Iterator[Any]) -> None:
        self.ids: list[str] = []
        self.refused: Refused = {}
        self.error: Exception | None = None
        self._read = call.arguments
        self._items = items

    def send(self, writers: Writers) -> None:
        """Read the items into their writers, and let these send them."""
        try:
            self._take(writers)
        finally:
            self.refused.update(writers.send())

    def _take(self, writers: Writers) -> None:
        until = monotonic() + CHUNK_SECONDS
        for position, task_id in enumerate(new_ids(CHUNK)):
            try:
                item = next(self._items)
            except StopIteration:
                return
            except Exception as error:
                self.error = error
                return
            self.ids.append(task_id)
            try:
                args, kwargs = self._read(item)
                writers.add(item, position, task_id, args, kwargs)
            except Exception as error:
                self.refused[position] = reason(error)
            if monotonic() > until:
                return


def _run_eagerly(call: Call, items: Iterable[Any], receipts: Receipts) -> None:
    if not call.varying:
        call.check()
    for item in items:
        try:
            args, kwargs = call.arguments(item)
            own = call.for_items(call.wish_of(item))
            if call.varying:
                with refusing_the_item():
                    own.check()
        except Exception as error:
            receipts.extend(new_ids(1), {0: reason(error)})
            continue
        assert call.task is not None
        result = call.task.apply_async(args, kwargs, **own.options)
        receipts.extend([result.id], {})


@contextmanager
def producer_for(app: Any, options: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the producer that these publishing options ask for, as ``send_task`` does."""
    if connection := options.get("connection"):
        yield app.amqp.Producer(connection, auto_declare=False)
        return
    with app.producer_or_acquire(options.get("producer")) as producer:
        yield producer
