"""When the message of a batch's item goes."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from batching.consumer.request import ItemRequest


def test_an_item_whose_result_waits_is_not_acknowledged_with_its_batch() -> None:
    acknowledged, has_begun, is_stored = threading.Event(), threading.Event(), threading.Event()
    batch: list[Any] = []
    item = _item(on_ack=acknowledged.set)
    item.acks = batch

    def end() -> None:
        item.acknowledge()  # as Celery does, before it stores a failure
        has_begun.set()
        assert is_stored.wait(10)

    item._end_when_stored(end)
    assert has_begun.wait(10)
    assert not batch
    assert not acknowledged.is_set()
    is_stored.set()
    assert acknowledged.wait(10)
    assert not batch


def _item(*, on_ack: Any) -> ItemRequest:
    """Return the request of an item in a worker that waits for its results."""
    item: Any = object.__new__(ItemRequest)
    item._app = SimpleNamespace(_celeriac_waiting=object())
    item._message = SimpleNamespace()
    item._on_ack = lambda *_: on_ack()
    item._connection_errors = ()
    item.acknowledged = item._already_cancelled = False
    return item  # type: ignore[no-any-return]
