"""What holds for a queue: the table, with what was set in the place of its fields."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from routing.errors import SettingRefused, TopologyError
from routing.topology.live import Change, LiveTable, Setting, with_values
from routing.topology.model import Topology
from routing.topology.queue import LiveQueue

TABLE = Topology.load({"queues": {"a": {"prefetch": 4, "weight": 2}, "b": {}}})


def settings(at_ms: int = 1, **values: Any) -> dict[str, Setting]:
    return {name: Setting(value=v, by="me", at_ms=at_ms) for name, v in values.items()}


def problem(**fields: Any) -> str:
    with pytest.raises(TopologyError) as caught:
        Topology.load({"queues": {"q": fields}})
    return str(caught.value)


@pytest.mark.parametrize("rate", ["50/s", "10/m", "100/h", "2", 5, 0.5])
def test_a_rate_is_read_as_celery_reads_one(rate: Any) -> None:
    table = Topology.load({"queues": {"q": {"rate": rate}}})
    assert table.queue("q").starts_per_second == pytest.approx(
        {"50/s": 50, "10/m": 1 / 6, "100/h": 1 / 36, "2": 2}.get(rate, rate)
    )


@pytest.mark.parametrize("rate", ["fast", "10/d", 0, -1, "0/s", True, [], "inf", "nan"])
def test_a_rate_that_is_none_says_what_is_expected(rate: Any) -> None:
    assert "rate must be a number of starts a second" in problem(rate=rate)
    assert "such as '50/s', '10/m' or '100/h', got" in problem(rate=rate)


def test_what_is_lent_is_a_reserve() -> None:
    assert "lend_below needs a reserve" in problem(lend_below=0.1)
    assert Topology.load({"queues": {"q": {"lend_below": 0.1, "reserve": 1}}})


def test_draining_is_no_field_of_the_table() -> None:
    assert "unknown field 'drain'" in problem(drain=True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"prefech": 1}, "field 'prefech' is unknown, did you mean 'prefetch'?"),
        ({"max_length": 1}, "field 'max_length' is the table's alone"),
        ({"zzz": 1}, "what can be set is prefetch, weight"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"prefetch": "many"}, "prefetch must be a whole number, got 'many'"),
        ({"paused": "yes"}, "paused must be true or false, got 'yes'"),
        ({"rate": "quick"}, "rate must be a number of starts a second"),
        ({"reserve": 3, "limit": 2}, "reserve must be at most limit (2), got 3"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingRefused) as caught:
        with_values("a", LiveQueue(), values)
    assert "queue 'a': " in str(caught.value)
    assert says in str(caught.value)


def test_a_setting_takes_the_place_of_the_tables_until_it_is_reset() -> None:
    live = LiveTable(TABLE)
    heard: list[Change] = []
    live.listeners.append(heard.append)
    live.apply(3, {"a": settings(prefetch=9, paused=True)})
    assert (live.queue("a").prefetch, live.queue("a").weight, live.queue("a").paused) == (
        9,
        2,
        True,
    )
    assert (live.version, live.of_table("a").prefetch) == (3, 4)
    live.apply(4, {"a": settings(prefetch=9)})
    live.apply(5, {})
    assert live.queue("a") == live.of_table("a")
    assert heard == [
        Change("a", frozenset({"prefetch", "paused"})),
        Change("a", frozenset({"paused"})),
        Change("a", frozenset({"prefetch"})),
    ]


def test_the_same_value_set_again_is_a_change() -> None:
    live = LiveTable(TABLE)
    live.apply(1, {"a": settings(prefetch=9)})
    assert live.apply(2, {"a": settings(prefetch=9)}) == []
    assert live.apply(3, {"a": settings(2, prefetch=9)}) == [Change("a", frozenset({"prefetch"}))]


def test_what_cannot_be_used_here_is_said_once_and_the_table_holds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = LiveTable(TABLE)
    with caplog.at_level(logging.WARNING):
        for version in range(3):
            live.apply(version, {"a": settings(shape=1, prefetch=9), "b": settings(weight=7)})
    assert live.queue("a").prefetch == 4
    assert live.queue("b").weight == 7
    (record,) = caplog.records
    assert record.__dict__["event"] == "settings_unusable"


def test_a_queue_outside_of_the_table_has_the_defaults() -> None:
    live = LiveTable(TABLE)
    live.apply(1, {"other": settings(paused=True)})
    assert not live.queue("other").paused
