"""Django's connections are looked at once before and once after a batch, as for a plain task."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps.basic import Traces, close
from tests.apps.djangoed import EVENTS, create
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

COUNT = 8


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_batch_has_one_connection_and_leaves_none(
    valkey: Server, pool: str, tmp_path: Path
) -> None:
    url = valkey.fresh_url()
    environment = {
        "CELERIAC_TEST_BROKER": url,
        "CELERIAC_TEST_DATABASE": str(tmp_path / "project.db"),
        "DJANGO_SETTINGS_MODULE": "tests.apps.django_settings",
    }
    app, traces = create(url), Traces(url)
    with Worker("tests.apps.djangoed", pool, 1, env=environment) as worker:
        app.tasks["djangoed.plain"].delay().get(timeout=20)
        # Its result is there before its signal is sent.
        eventually(lambda: traces.client.llen(EVENTS) >= 2)
        traces.client.delete(EVENTS)
        load = app.tasks["djangoed.load"]
        batch = ["open", *["ended"] * COUNT]
        for expected_events in (COUNT + 2, 2 * (COUNT + 2)):
            load.delay_many(range(COUNT))
            eventually(
                lambda least=expected_events: traces.client.llen(EVENTS) >= least,  # type: ignore[misc]
                20,
                message=lambda: f"{traces.client.lrange(EVENTS, 0, -1)}\n{worker.log[-4000:]}",
            )
        app.tasks["djangoed.plain"].delay().get(timeout=20)
        eventually(lambda: traces.client.llen(EVENTS) >= 2 * (COUNT + 2) + 2)
        events = [event.decode() for event in traces.client.lrange(EVENTS, 0, -1)]
    expected = [str(COUNT), *batch] * 2
    assert events == [*expected, "open", "ended"]
    close(app)
