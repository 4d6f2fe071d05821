"""Apps for the tests of routing; none of them is anybody's current app."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, settings

# A busy machine is no failure of what is tested.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

AppFactory = Callable[..., Celery]


@pytest.fixture
def make_app() -> Iterator[AppFactory]:
    """Makes apps, and closes their connections at the end."""
    apps: list[Celery] = []

    def make(broker: str = "memory://", **settings: Any) -> Celery:
        app = Celery("shop", broker=broker, set_as_current=False)
        app.conf.update(settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        if app._pool is not None:
            app._pool.force_close_all()
        app.close()
