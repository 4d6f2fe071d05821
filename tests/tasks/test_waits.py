"""What the demo makes of the waits that workers have counted."""

from __future__ import annotations

from tasks.demo.waits import waits_between

OLD = {"one@here": {"bulk": {10: 5, 200: 1}, "realtime": {1: 9}}}


def test_the_waits_of_all_workers_are_added() -> None:
    after = {"one@here": {"bulk": {10: 5}}, "two@here": {"bulk": {10: 1, 30: 2}}}
    assert waits_between({}, after) == {"bulk": {10: 6, 30: 2}}


def test_what_was_counted_before_the_run_is_taken_off() -> None:
    after = {"one@here": {"bulk": {10: 7, 200: 1}, "realtime": {1: 9, 2: 3}}}
    assert waits_between(OLD, after) == {"bulk": {10: 2}, "realtime": {2: 3}}


def test_a_worker_that_was_started_again_counts_from_its_own_beginning() -> None:
    after = {"one@here": {"bulk": {10: 2}, "realtime": {1: 20}}}
    assert waits_between(OLD, after) == {"bulk": {10: 2}, "realtime": {1: 11}}


def test_a_worker_that_has_ended_says_nothing() -> None:
    assert waits_between(OLD, {}) == {}
