"""What an app that adopts a queue table leaves in Celery's own default queue."""

from __future__ import annotations

import pytest
from celery import Celery

from routing.worker.startup import warn_of_stranded
from tests.support.broker import Broker
from tests.support.messages import numbered


def test_messages_in_celerys_own_queue_are_pointed_out(
    app: Celery, broker_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker(broker_url) as broker, app.connection_for_read() as connection:
        warn_of_stranded(connection.default_channel, app)
        assert not caplog.records
        broker.client.lpush("celery", *numbered(1))
        warn_of_stranded(connection.default_channel, app)
    assert "1 messages wait in queue 'celery'" in caplog.text
