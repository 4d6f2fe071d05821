"""The PostgreSQL that tests use where a real one is asked for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

#: Where it is, unless the environment says otherwise.
DEFAULT_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


@contextmanager
def postgres_url() -> Iterator[str]:
    """Yield the URL of a schema of its own, which is dropped in the end.

    Without a server the test is skipped, and fails under CI.
    """
    url = os.environ.get("CELERIAC_TEST_POSTGRES_URL", DEFAULT_URL)
    schema = f"celeriac_{secrets.token_hex(4)}"
    engine = sa.create_engine(url, connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    except sa.exc.OperationalError as error:
        message = f"needs PostgreSQL at CELERIAC_TEST_POSTGRES_URL or on port 5432: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    mark = "&" if "?" in url else "?"
    try:
        yield f"{url}{mark}options=-csearch_path%3D{schema}"
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
        engine.dispose()
