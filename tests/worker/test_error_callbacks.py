"""A batch task as an error callback is sent as a message, as a plain task is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from celery import Celery, chain, chord, group

from tests.apps.basic import close
from tests.apps.callbacks import create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker


class Site(NamedTuple):
    """A running worker, and what a test needs to talk to it."""

    app: Celery
    broker: Broker

    def called(self, count: int) -> list[str]:
        """Return what so many error callbacks were called with, as soon as they were."""
        client = self.broker.client
        eventually(lambda: client.llen("called") >= count)
        eventually(lambda: self.broker.has_ended("default"))
        return sorted(text.decode() for text in client.lrange("called", 0, -1))


@pytest.fixture(scope="module")
def started(valkey: Server) -> Iterator[Site]:
    url = valkey.fresh_url()
    worker = Worker(
        "tests.apps.callbacks", "prefork", queues=["default"], env={"CELERIAC_TEST_BROKER": url}
    )
    with worker, Broker(url) as broker:
        app = create(url)
        yield Site(app, broker)
        close(app)


@pytest.fixture
def site(started: Site) -> Iterator[Site]:
    started.broker.client.delete("called")
    yield started
    # Results unsubscribe when they go, which needs the broker.
    gc.collect()


@pytest.fixture(params=["note.any", "note.id"])
def callback(request: pytest.FixtureRequest, site: Site) -> Any:
    """An error callback without a model, and one with."""
    return site.app.tasks[request.param].s()


@pytest.mark.parametrize("name", ["fails", "fails.batch"])
def test_it_gets_the_id_of_what_failed(site: Site, callback: Any, name: str) -> None:
    failed = site.app.tasks[name].apply_async((1,), link_error=callback)
    assert site.called(1) == [f"{callback.task} {failed.id}"]
    assert failed.state == "FAILURE"


def test_every_item_of_a_batch_calls_its_own(site: Site, callback: Any) -> None:
    receipts = site.app.tasks["fails.batch"].delay_many(range(20), link_error=callback)
    assert site.called(20) == sorted(f"{callback.task} {one}" for one in receipts.ids)


def test_an_immutable_one_gets_its_own_arguments(site: Site) -> None:
    note = site.app.tasks["note.row"]
    site.app.tasks["fails"].apply_async(link_error=note.si({"number": 7}))
    site.app.tasks["fails"].apply_async(link_error=note.si(number=8))
    assert site.called(2) == ["note.row number=7", "note.row number=8"]


def test_it_may_be_given_by_its_name_alone(site: Site) -> None:
    failed = site.app.send_task("fails", link_error=site.app.signature("note.id"))
    assert site.called(1) == [f"note.id {failed.id}"]


def test_several_are_all_sent(site: Site) -> None:
    tasks = site.app.tasks
    both = [tasks["note.any"].s(), tasks["note.id"].s()]
    failed = tasks["fails"].apply_async(link_error=both)
    assert site.called(2) == [f"note.any {failed.id}", f"note.id {failed.id}"]


def test_a_chords_error_calls_that_of_its_body(site: Site, callback: Any) -> None:
    noop, fails = site.app.tasks["noop"], site.app.tasks["fails.batch"]
    body = noop.s().on_error(callback)
    result = chord([noop.s(1), fails.s(2)])(body)
    assert site.called(1) == [f"{callback.task} {result.id}"]


def test_a_chain_and_a_group_call_it_for_the_step_that_fails(site: Site, callback: Any) -> None:
    noop, fails = site.app.tasks["noop"], site.app.tasks["fails"]
    failed = chain(noop.s(1), fails.s()).on_error(callback).apply_async()
    members = group(fails.s(1), fails.s(2)).on_error(callback).apply_async()
    ids = [failed.id, *(member.id for member in members.results)]
    assert site.called(3) == sorted(f"{callback.task} {one}" for one in ids)


@pytest.mark.parametrize("name", ["fails", "fails.batch"])
def test_it_is_let_into_a_full_queue(site: Site, name: str) -> None:
    waiting = site.broker.length("full")
    if not waiting:
        site.app.tasks["noop"].apply_async(queue="full")
    callback = site.app.tasks["note.any"].s().set(queue="full")
    failed = site.app.tasks[name].apply_async((1,), link_error=callback)
    eventually(lambda: site.broker.length("full") == max(1, waiting) + 1)
    with pytest.raises(LookupError, match="as it should"):
        failed.get(timeout=10)
