from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from tests.upstream import compare, sides
from tests.upstream.compare import Known, Outcomes, load, lost, stale


@pytest.mark.parametrize("module", [compare, sides], ids=lambda module: module.__name__)
def test_its_examples_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_each_listed_difference_has_a_reason() -> None:
    assert all(entry.cases and entry.reason.strip() for entry in load())


@pytest.mark.parametrize("ours", ["failed", "skipped", None])
def test_what_passes_on_stock_alone_is_lost(ours: str | None) -> None:
    found = Outcomes(of={"case": ours} if ours else {})
    assert lost(Outcomes(of={"case": "passed"}), found) == ["case"]
    assert lost(Outcomes(of={"case": "failed"}), found) == []


def test_a_case_that_passes_the_second_time_is_not_lost() -> None:
    first, second = Outcomes(of={"case": "failed"}), Outcomes(of={"case": "passed"})
    assert lost(Outcomes(of={"case": "passed"}), first | second) == []


def test_a_listed_difference_that_is_none_any_more_is_named() -> None:
    known = [Known(cases="a::*", reason="so"), Known(cases="b::*", reason="so")]
    assert stale(known, ["a::test"]) == known[1:]
