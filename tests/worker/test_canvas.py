"""Canvases of plain and batched tasks give what those of plain tasks alone give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from celery import Celery, chain, chord, group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apps.basic import Traces, close
from tests.apps.canvases import ERRORS, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

SEED = 1


@dataclass(frozen=True)
class Site:
    app: Celery
    worker: Worker
    broker: Broker
    traces: Traces


@pytest.fixture(scope="module", params=["prefork", "threads"])
def site(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    environment = {"CELERIAC_TEST_BROKER": url}
    worker = Worker("tests.apps.canvases", request.param, 2, queues=["default"], env=environment)
    with worker, Broker(url) as broker:
        app, traces = create(url), Traces(url)
        yield Site(app, worker, broker, traces)
        close(app)


@dataclass(frozen=True)
class Add:
    """One task."""

    number: int
    is_batched: bool


@dataclass(frozen=True)
class Of:
    """A canvas of others."""

    kind: str
    parts: tuple[Tree, ...]


Tree: TypeAlias = Add | Of

LEAVES = st.builds(Add, st.integers(0, 99), st.booleans())


def wider(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    kinds = st.sampled_from(["chain", "group", "chord"])
    return st.builds(Of, kinds, st.lists(inner, min_size=2, max_size=3).map(tuple))


TREES = st.recursive(LEAVES, wider, max_leaves=6)


def signature(app: Celery, tree: Tree, *, may_batch: bool) -> Any:
    """Return the canvas; without batched tasks, if those may not be in it."""
    if isinstance(tree, Add):
        kind = "batched" if tree.is_batched and may_batch else "plain"
        return app.tasks[f"{kind}.add"].s(tree.number)
    parts = [signature(app, part, may_batch=may_batch) for part in tree.parts]
    if tree.kind == "chain":
        return chain(*parts, app=app)
    if tree.kind == "group":
        return group(parts, app=app)
    *header, body = parts
    if not isinstance(tree.parts[-1], Add):  # a body is one task
        header, body = parts, app.tasks["plain.add"].s(0)
    return chord(group(header, app=app), body, app=app)


def result(canvas: Any) -> Any:
    """Run a canvas, and return what it gives, or how it fails."""
    try:
        return canvas.apply_async((SEED,)).get(timeout=30)
    except Exception as error:
        return type(error), str(error)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=TREES)
def test_a_canvas_gives_the_same_with_batched_tasks_in_it(site: Site, tree: Tree) -> None:
    mixed = result(signature(site.app, tree, may_batch=True))
    assert mixed == result(signature(site.app, tree, may_batch=False))


@pytest.mark.parametrize("kind", ["plain", "batched"])
@pytest.mark.parametrize("fate", ["dead", "expired", "dropped"])
def test_a_chord_with_a_member_that_does_not_succeed_fails_once(
    site: Site, kind: str, fate: str
) -> None:
    site.traces.client.delete(ERRORS)
    add = site.app.tasks[f"{kind}.add"]
    if fate == "dropped":  # the first, as its queue has room for two
        header = [add.s(SEED, n).set(queue="small") for n in range(3)]
    elif fate == "expired":
        header = [add.s(SEED, 1), add.s(SEED, 2).set(expires=-1), add.s(SEED, 3)]
    else:
        bad = site.app.tasks[f"{kind}.dead"]
        header = [add.s(SEED, 1), bad.s(SEED, 2), add.s(SEED, 3)]
    body = site.app.tasks["plain.add"].s(0).on_error(site.app.signature("note_error"))
    ending = chord(group(header, app=site.app), body, app=site.app).apply_async()
    if fate == "dropped":
        site.app.control.add_consumer("small", reply=True)
    try:
        with pytest.raises(Exception, match=r"bad|expired|dropped|ChordError|Dependency"):
            ending.get(timeout=30)
        eventually(lambda: site.broker.has_ended("default"))
        eventually(lambda: site.traces.client.llen(ERRORS) > 0)
        assert site.traces.client.llen(ERRORS) == 1
    finally:
        site.app.control.cancel_consumer("small", reply=True)
