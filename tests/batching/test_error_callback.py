"""A batch task as an error callback of what fails in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pydantic import RootModel

from batching import Batch, BatchTask


class TaskId(RootModel[str]):
    """What an error callback is called with."""


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("t", set_as_current=False, broker="memory://", backend="cache+memory://")
    yield app
    app.close()


@pytest.mark.parametrize("model", [None, TaskId])
@pytest.mark.parametrize("always_eager", [False, True])
def test_an_eager_failure_calls_it_with_the_id(app: Celery, model: Any, always_eager: bool) -> None:
    called: list[Any] = []

    @app.task(name="note", base=BatchTask, model=model, shared=False)
    def note(batch: Batch[Any]) -> None:
        called.extend(getattr(item.value, "root", item.value) for item in batch)

    @app.task(name="fails", shared=False)
    def fails() -> None:
        raise LookupError("as it should")

    app.conf.task_always_eager = always_eager
    failed = (fails.apply_async if always_eager else fails.apply)(link_error=note.s())
    assert called == [failed.id]
