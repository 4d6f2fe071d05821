from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from routing import QueueConfig, Topology, TopologyError, UnknownLevel
from routing.topology.checks import check_worker, prefetch_needed
from routing.topology.model import Route

TABLE: dict[str, Any] = {
    "queues": {"realtime": {"prefetch": 8}, "ingest": {"prefetch": 2000}, "bulk": {}},
    "routes": {
        "flights.load": {"queue": "ingest", "low": "bulk", "high": "realtime"},
        "flights.*": "bulk",
        "*.load": "realtime",
    },
}


def problems(table: Any) -> str:
    with pytest.raises(TopologyError) as caught:
        Topology.load(table)
    return str(caught.value)


def queue(**fields: Any) -> dict[str, Any]:
    return {"queues": {"reports": fields}}


def test_a_table_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "queues.toml"
    path.write_text(
        '[queues.a]\nprefetch = 4\n[queues.b]\n[routes]\n"x" = { queue = "a", low = "b" }'
    )
    table = Topology.load(path)
    assert table.queue("a").prefetch == 4
    route = table.route("x")
    assert route is not None
    assert route.queue_for("low") == "b"
    assert Topology.load(str(path)) == table


def test_a_loaded_table_is_returned_as_it_is() -> None:
    table = Topology.load(TABLE)
    assert Topology.load(table) is table


def test_the_first_queue_is_the_default_queue() -> None:
    assert Topology.load(TABLE).default_queue == "realtime"
    assert Topology.load({**TABLE, "default_queue": "bulk"}).default_queue == "bulk"


def test_a_queue_outside_the_table_has_the_defaults() -> None:
    table = Topology.load(TABLE)
    assert "elsewhere" not in table
    assert table.queue("elsewhere") == QueueConfig()


def test_the_models_cannot_be_changed() -> None:
    table = Topology.load(TABLE)
    with pytest.raises(ValidationError, match="frozen"):
        table.queue("bulk").prefetch = 3  # type: ignore[misc]


def test_every_field_says_what_it_means_and_why_its_default() -> None:
    for model in (QueueConfig, Topology):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.is_required() or "Default" in field.description, name


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"max_length": 0}, "queue 'reports': max_length must be at least 1, got 0"),
        ({"prefetch": -1}, "queue 'reports': prefetch must be at least 1, got -1"),
        ({"weight": 0}, "queue 'reports': weight must be at least 1, got 0"),
        ({"reserve": -1}, "queue 'reports': reserve must be at least 0, got -1"),
        ({"limit": 0}, "queue 'reports': limit must be at least 1, got 0"),
        ({"max_age": 0}, "queue 'reports': max_age must be more than 0, got 0"),
        ({"prefetch": "4"}, "queue 'reports': prefetch must be a whole number, got '4'"),
        ({"prefetch": 1.5}, "queue 'reports': prefetch must be a whole number, got 1.5"),
        ({"prefetch": True}, "queue 'reports': prefetch must be a whole number, got True"),
        ({"max_age": float("nan")}, "queue 'reports': max_age must be a number, got nan"),
        (
            {"max_lenght": 3},
            "queue 'reports': unknown field 'max_lenght', did you mean 'max_length'?",
        ),
        ({"reserve": 3, "limit": 2}, "queue 'reports': reserve must be at most limit (2), got 3"),
        ({"block_timeout": 1}, "queue 'reports': block_timeout needs overflow = 'block'"),
        ({"overflow": "explode"}, "queue 'reports': overflow must be one of 'reject', 'block'"),
    ],
)
def test_a_bad_field_is_named_with_what_was_expected_and_got(
    fields: dict[str, Any], line: str
) -> None:
    assert line in problems(queue(**fields))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({}, "queues is missing"),
        ({"queues": {}}, "queues must name at least one queue, got none"),
        ({"queues": []}, "queues must be a table, got []"),
        ({"queues": {"a": 3}}, "queue 'a': must be a table, got 3"),
        ({"queues": {"a": {}}, "rutes": {}}, "unknown field 'rutes', did you mean 'routes'?"),
        ({"queues": {"a": {}}, "default_queue": "b"}, "default_queue must be a queue of the table"),
        ({"queues": {"a": {}}, "lease_seconds": 2}, "lease_seconds must be at least 3, got 2"),
        (
            {"queues": {"reports": {}}, "routes": {"t": "report"}},
            "route 't': queue must be a queue of the table, got 'report', did you mean 'reports'?",
        ),
        (
            {"queues": {"a": {}}, "routes": {"t": {"queue": "a", "low": "zzz"}}},
            "route 't': low must be a queue of the table, got 'zzz'",
        ),
        ({"queues": {"a": {}}, "routes": {"t": {"low": "a"}}}, "route 't': queue is missing"),
        (
            {"queues": {"a": {}}, "routes": {"t": {"queue": "a", "hihg": "a"}}},
            "route 't': unknown level 'hihg', did you mean 'high'?",
        ),
        ({"queues": {"a": {}}, "routes": {"t": 5}}, "route 't': must be a table, got 5"),
    ],
)
def test_a_bad_table_is_refused_with_the_reason(table: Any, line: str) -> None:
    assert line in problems(table)


@pytest.mark.parametrize("queues", [{}, {"queues": []}, {"queues": {}}])
def test_without_queues_that_is_the_only_problem(queues: dict[str, Any]) -> None:
    assert len(problems(queues).splitlines()) == 2


def test_all_problems_are_listed_one_a_line() -> None:
    text = problems({"queues": {"a": {"prefetch": 0, "weight": 0}}, "lease_seconds": 1})
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    "name", ["", " a", "a\x06\x16", "a\n", "a.dead", "a.dropped", "a,b", "unacked", "celeriac:x"]
)
def test_a_queue_name_that_would_break_something_is_refused(name: str) -> None:
    assert f"queue {name!r}: " in problems({"queues": {name: {}}})


def test_a_missing_file_and_a_syntax_error_are_topology_errors(tmp_path: Path) -> None:
    assert "no queue table at" in problems(tmp_path / "nothing.toml")
    path = tmp_path / "bad.toml"
    path.write_text("[queues\n")
    text = problems(path)
    assert "is not TOML" in text
    assert "line 1" in text
    assert "cannot be read" in problems(tmp_path)


def test_what_is_no_table_at_all_is_refused() -> None:
    assert "got int" in problems(5)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "queues.toml"
    path.write_text("[queues.a]\nprefetch = 0\n")
    assert str(path) in problems(path)


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "dead_letter"])
def test_a_policy_needs_a_bound(overflow: str) -> None:
    for bound in ("max_length", "max_bytes", "max_delayed"):
        table = Topology.load(queue(overflow=overflow, **{bound: 1}))
        assert table.queue("reports").overflow == overflow
    assert f"overflow = '{overflow}' needs a bound" in problems(queue(overflow=overflow))


def test_an_exact_route_wins_over_globs_and_an_earlier_glob_over_a_later_one() -> None:
    table = Topology.load(TABLE)
    found = [table.route(name) for name in ("flights.load", "flights.x", "cars.load", "cars.x")]
    assert [route and route.queue for route in found] == ["ingest", "bulk", "realtime", None]


def test_a_level_leads_to_its_queue_and_normal_to_the_plain_one() -> None:
    route = Topology.load(TABLE).routes["flights.load"]
    assert route.queue_for() == route.queue_for("normal") == "ingest"
    assert route.queue_for("low") == "bulk"
    with pytest.raises(UnknownLevel, match=r"no queue for level 'critical'.*'low', 'high'"):
        route.queue_for("critical")


def test_a_route_may_have_levels_of_its_own_names() -> None:
    assert Route.model_validate({"queue": "a", "urgent": "b"}).queue_for("urgent") == "b"


def test_reserves_must_fit_into_the_slots() -> None:
    table = Topology.load({"queues": {"a": {"reserve": 3}, "b": {"reserve": 2}}})
    check_worker(table, 5, {})
    check_worker(table, 3, {}, queues=["a"])
    with pytest.raises(TopologyError, match=r"at most the worker's concurrency \(4\), got 5"):
        check_worker(table, 4, {})


def test_a_prefetch_of_the_table_must_hold_a_batch_of_every_task_that_goes_there() -> None:
    table = Topology.load(TABLE)
    check_worker(table, 1, {"realtime": {"flights.load": 8}})
    check_worker(table, 64, {"bulk": {"flights.load": 5_000}})  # which says nothing, so it fits
    with pytest.raises(TopologyError) as caught:
        check_worker(table, 1, {"realtime": {"flights.load": 500, "unrouted": 9}})
    assert str(caught.value).splitlines() == [
        "queue 'realtime': prefetch must be at least max_size (500) of batch task "
        "'flights.load', got 8",
        "queue 'realtime': prefetch must be at least max_size (9) of batch task 'unrouted', got 8",
    ]
    check_worker(table, 1, {"realtime": {"flights.load": 500}}, queues=["ingest"])


@given(
    slots=st.integers(1, 100),
    limit=st.none() | st.integers(1, 100),
    sizes=st.dictionaries(st.text(), st.integers(1, 10_000)),
)
def test_with_the_prefetch_needed_a_batch_fills_while_every_slot_runs_another(
    slots: int, limit: int | None, sizes: dict[str, int]
) -> None:
    needed = prefetch_needed(QueueConfig(limit=limit), slots, sizes)
    running = min(slots, limit or slots)
    assert all(needed - running * size >= size for size in sizes.values())
    assert needed <= (slots + 1) * sum(sizes.values())


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)
        ),
    )
)
def test_any_mapping_is_a_table_or_a_topology_error(data: dict[str, Any]) -> None:
    for table in (
        data,
        {"queues": data},
        {"queues": {"a": data}},
        {"queues": {"a": {}}, "routes": data},
    ):
        with contextlib.suppress(TopologyError):
            Topology.load(table)


def test_a_table_survives_pickling() -> None:
    table = Topology.load(TABLE)
    assert pickle.loads(pickle.dumps(table)) == table


def test_names_and_fields_that_are_wrong_are_listed_together() -> None:
    table = {
        "queues": {"x": {"prefech": 3}, "y": {"lend_below": 1.0}, " z": {}},
        "routes": {"a": "nope", "b": {"queue": "x", "low": "yy"}, "c": 5, "d": "y"},
        "limits": {"e": {"rate": 0}, "f g": {"rate": 1}},
        "default_queue": "w",
    }
    told = [line.split(", did")[0] for line in problems(table).splitlines()[1:]]
    assert [line.split(":", 1)[0] for line in told] == [
        "queue 'x'",
        "queue 'y'",
        "route 'c'",
        "limit 'e'",
        "queue ' z'",
        "default_queue must be a queue of the table, got 'w'",
        "limit 'f g'",
        "route 'a'",
        "route 'b'",
    ]
