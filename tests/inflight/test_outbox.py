"""What waits to be carried, taken while a signal's handler adds to it."""

from __future__ import annotations

from typing import Any

from routing.inflight.outbox import Outbox
from routing.redis.values import Ending


class Interrupted(list[Any]):
    """A list while which is read a handler runs, once."""

    def __init__(self, endings: list[Ending], handler: Any) -> None:
        super().__init__(endings)
        self._handlers = [handler]

    def __getitem__(self, key: Any) -> Any:
        if self._handlers:
            self._handlers.pop()()
        return super().__getitem__(key)


def test_what_a_handler_adds_while_a_settlement_is_taken_is_in_the_next_one() -> None:
    outbox = Outbox()
    first, late = Ending("q", "done", "a:1:1"), Ending("q", "done", "a:1:2")
    outbox._ended = Interrupted([first], lambda: outbox.add_endings([late]))
    assert outbox.take_settlement().endings == [first]
    assert outbox.take_settlement().endings == [late]
    assert not outbox.take_settlement().endings
