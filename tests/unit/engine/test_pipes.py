"""What is looked after when the loop of a prefork pool is reset."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from routing.pipes import Pipes


def test_a_process_whose_end_was_noticed_is_not_watched_again() -> None:
    watched: list[Any] = []
    pool = SimpleNamespace(
        _result_handler=SimpleNamespace(_recv_message=None),
        _track_child_process=lambda process, hub: watched.append(process),
    )
    Pipes(pool)
    fresh, alive = SimpleNamespace(), SimpleNamespace(_sentinel_poll=7)
    gone = SimpleNamespace(_sentinel_poll=None)
    for process in (fresh, gone, alive):
        pool._track_child_process(process, None)
    assert watched == [fresh, alive]
