"""A link that falls silent, closing nothing: it is noticed, in every pool, and nothing is lost."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from tests.apps.basic import TABLE, close, create
from tests.support.links import Link
from tests.support.servers import Server
from tests.support.station import Station, station
from tests.support.wait import elapse, eventually
from tests.worker.conftest import POOLS

#: Seconds after which a link counts as silent, for quick tests.
TIMEOUT_SECONDS = 1.0

#: Detection, a look each second (two where there is no event loop), and Celery's own wait of two.
NOTICED_SECONDS = 15.0

SETTINGS = {"table": {**TABLE, "lease_seconds": 8.0}}
OPTIONS = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}


@pytest.fixture(scope="module")
def link(valkey: Server) -> Iterator[Link]:
    with Link(valkey.port) as link:
        yield link


@pytest.fixture(scope="module")
def places(valkey: Server, link: Link) -> Iterator[list[Station]]:
    """A worker of each pool, all behind the link."""
    with ExitStack() as stack:
        yield [stack.enter_context(behind(link, valkey, pool)) for pool in POOLS]


@contextmanager
def behind(link: Link, valkey: Server, pool: str) -> Iterator[Station]:
    """Run a worker behind the link, which alone depends on it: the test sends past it."""
    url, store = valkey.fresh_url(), valkey.fresh_url()
    with (
        station(
            link.url(url, valkey.port),
            pool,
            store=store,
            view=url,
            options=OPTIONS,
            settings=SETTINGS,
        ) as running,
        direct(running, url, store) as at,
    ):
        yield at


@contextmanager
def direct(at: Station, url: str, store: str) -> Iterator[Station]:
    app = create(url, store=store, table=SETTINGS["table"])
    yield replace(at, app=app)
    close(app)


def test_a_silent_link_is_left_and_everything_is_done_once_in_every_pool(
    places: list[Station], link: Link
) -> None:
    gate = secrets.token_hex(3)
    sent = {}
    for at in places:
        at.traces.client.delete("started", "ran", "starts", "runs")
        held = at.send_many("held", 6, gate, queue="bulk")
        sent[at.worker.name] = [*held, *at.send_many("mark", 8, 0.3, queue="bulk")]
    for at in places:
        for _ in range(at.worker.slots):
            at.traces.next_start()
    assert link.silence() > 0
    for at in places:
        at.traces.open(gate, times=6)
    for at in places:
        names = sent[at.worker.name]
        at.wait_until_ran(len(names), timeout=NOTICED_SECONDS + 5)
        at.wait_until_settled()
        assert at.traces.counts() == dict.fromkeys(names, 1)
        assert at.traces.counts("started") == at.traces.counts()
        assert at.broker.dead("bulk") == []
        assert not at.broker.charges()


def test_an_idle_worker_notices_a_silent_link_in_every_pool(
    places: list[Station], link: Link
) -> None:
    for at in places:
        at.wait_until_settled()
    assert link.silence() > 0
    name = secrets.token_hex(3)
    for at in places:
        at.send("mark", name, queue="bulk", ignore_result=True)
    for at in places:
        eventually(
            lambda at=at: at.traces.counts().get(name) == 1,  # type: ignore[misc]
            NOTICED_SECONDS,
            message=lambda at=at: at.worker.log[-5000:],  # type: ignore[misc]
        )


def test_a_link_that_serves_nobody_for_a_while_is_found_again_in_every_pool(
    places: list[Station], link: Link
) -> None:
    sent = {}
    for at in places:
        at.traces.client.delete("started", "ran", "starts", "runs")
        sent[at.worker.name] = at.send_many("mark", 20, 0.1, queue="bulk")
    for at in places:
        at.traces.next_run()
    link.silence(new_ones=True)
    elapse(4)
    link.heal()
    link.silence()
    for at in places:
        names = sent[at.worker.name]
        at.wait_until_ran(len(names), timeout=30)
        at.wait_until_settled(timeout=20)
        assert at.traces.counts() == dict.fromkeys(names, 1)


def test_another_worker_takes_over_what_never_started(valkey: Server) -> None:
    """The app has switched the timeouts off, and its loop hangs: only the renewer still works."""
    url, store = valkey.fresh_url(), valkey.fresh_url()
    settings = {"table": {**TABLE, "lease_seconds": 3.0}}
    options = {"socket_timeout": None, "health_check_interval": 300}
    with ExitStack() as stack:
        link = stack.enter_context(Link(valkey.port))
        at = stack.enter_context(
            station(
                link.url(url, valkey.port),
                "threads",
                2,
                store=store,
                view=url,
                options=options,
                settings=settings,
            )
        )
        at = stack.enter_context(direct(at, url, store))
        at.limit_rate("held", "1/h")  # what it keeps waiting does not go back
        names = at.send_many("held", 4, "gate", queue="bulk")
        at.traces.next_start()
        eventually(lambda: at.broker.unacked("bulk") == 4)
        assert link.silence() > 0
        twin = stack.enter_context(at.worker.twin(concurrency=1))
        assert sorted(at.traces.next_start(seconds=20) for _ in range(1)) == names[1:2]
        at.traces.open("gate", times=1)  # one of the two goes on
        at.traces.open("gate", times=3)
        at.wait_until_ran(4, timeout=20)
        assert at.traces.counts() == dict.fromkeys(names, 1)
        assert at.traces.counts("started") == dict.fromkeys(names, 1)
        assert twin.running
        at.worker.kill()
