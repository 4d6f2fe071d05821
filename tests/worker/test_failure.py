"""What stands in for an error on its way to the worker's parent."""

from __future__ import annotations

import pickle
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry

from routing import DeadLetter
from routing.message.evidence import type_name
from routing.worker.failure import TEXT_AT_MOST, Failure, failure, failure_of, stand_in
from tests.apps.failing import ERRORS


def travelled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def raised(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


@pytest.mark.parametrize("kind", ERRORS)
def test_any_error_travels_with_its_name_and_text(kind: str) -> None:
    error = ERRORS[kind]()
    found = travelled(failure(raised(error)))
    assert isinstance(found, Failure)
    assert type_name(found.exception) == type_name(error)
    if kind != "mute":
        assert str(found.exception) == str(error)
    assert "in raised" in found.traceback
    assert found.exc_info == (type(found.exception), found.exception, None)


def test_what_means_something_to_the_parent_keeps_its_meaning() -> None:
    reject = travelled(stand_in(Reject(ERRORS["needs two"](), requeue=True)))
    assert isinstance(reject, Reject)
    assert (reject.requeue, type_name(reject)) == (True, "celery.exceptions.Reject")
    retry = travelled(
        stand_in(Retry(None, ERRORS["homebound"](), datetime(2026, 1, 1, tzinfo=UTC)))
    )
    assert isinstance(retry, Retry)
    assert "homebound" in repr(retry.exc)
    assert "2026" in str(retry)
    assert isinstance(travelled(stand_in(Ignore())), Ignore)
    assert isinstance(travelled(stand_in(DeadLetter("never"))), DeadLetter)


@pytest.mark.parametrize("kind", ["memory", "lost elsewhere", "generator", "cancelled"])
def test_what_only_the_parent_may_say_is_a_failure_like_any_other(kind: str) -> None:
    found = stand_in(ERRORS[kind]())
    assert isinstance(found, Exception)
    assert not isinstance(found, (MemoryError, type(ERRORS[kind]())))


def test_no_frame_outlives_what_was_reported() -> None:
    class Heavy:
        pass

    def fail() -> weakref.ref[Heavy]:
        heavy = Heavy()
        try:
            try:
                raise LookupError(1)
            except LookupError as error:
                raise ValueError(2) from error
        except ValueError as error:
            kept.append(error)
        return weakref.ref(heavy)

    kept: list[ValueError] = []
    heavy = fail()
    assert heavy() is not None
    failure_of(kept[0])
    assert heavy() is None
    assert kept[0].__cause__ is not None


def test_a_text_without_end_is_cut() -> None:
    found = failure_of(ValueError("x" * 1_000_000))
    assert len(pickle.dumps(found)) < 6 * TEXT_AT_MOST
