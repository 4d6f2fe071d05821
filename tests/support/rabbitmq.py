"""The RabbitMQ that tests use where another broker than Redis is asked for."""

from __future__ import annotations

import os

import pytest
from kombu import Connection

#: Where it is, unless the environment says otherwise.
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672//"


def amqp_url() -> str:
    """Return the URL of a RabbitMQ; without one the test is skipped, and fails under CI."""
    url = os.environ.get("CELERIAC_TEST_AMQP_URL", DEFAULT_URL)
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1)
    except OSError as error:
        message = f"needs RabbitMQ at CELERIAC_TEST_AMQP_URL or on port 5672: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return url
