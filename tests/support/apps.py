"""What the fixture `make_app` gives a test."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

#: Makes an app for a broker's URL, with these settings.
AppFactory = Callable[..., Celery]
