"""The platform's Celery app: ``celery -A tasks worker``, ``flower``, ``inspect`` and the rest.

Every module in this package that is not part of the platform itself is imported for its tasks, and
so are the modules that ``CELERIAC_TASK_MODULES`` names.
"""

from __future__ import annotations

import importlib.util
import logging
import pkgutil

import celery

import tasks
from routing import install
from tasks.broker import broker_url
from tasks.settings import Settings

logger = logging.getLogger(__name__)

#: Modules of the platform itself, which hold no tasks.
PLATFORM = frozenset(
    {"broker", "celery", "child", "database", "demo", "embedded", "settings", "up"}
)

#: Task modules of ours with the package that they need.
OPTIONAL = {"tasks.flights": "sqlalchemy", "tasks.webhooks": "httpx"}


def task_modules(settings: Settings) -> list[str]:
    """The modules that workers import: what lies in ``tasks/``, then what the setting names."""
    names = sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))
    found = [f"tasks.{name}" for name in names if name not in PLATFORM]
    usable = [name for name in found if _is_usable(name)]
    return [*usable, *settings.task_modules]


def create_app(settings: Settings) -> celery.Celery:
    """A configured app for these settings; nothing is connected yet."""
    url = broker_url(settings)
    created = celery.Celery("tasks", broker=url, backend=_backend_url(settings, url))
    created.conf.update(
        imports=task_modules(settings),
        result_expires=settings.result_expires_seconds,
        result_extended=True,  # Flower and a look into the backend show name and arguments
        broker_connection_retry_on_startup=True,  # a worker may start before its broker
        broker_connection_max_retries=None,  # and outlasts any outage of it
    )
    if settings.broker_url is None:
        created.conf["broker_remedy"] = "start it: make up"  # what our commands say when it is down
    install(created, settings.queues_file)
    return created


def _backend_url(settings: Settings, broker: str) -> str:
    """The result backend in force; of a list of brokers only Sentinel's is one server."""
    if settings.result_backend:
        return settings.result_backend
    return broker if broker.startswith("sentinel://") else broker.split(";")[0]


def _is_usable(name: str) -> bool:
    package = OPTIONAL.get(name)
    if package is None or importlib.util.find_spec(package) is not None:
        return True
    logger.info("%s is left out: it needs %s: pip install -r tasks/requirements.txt", name, package)
    return False


app = create_app(Settings())
