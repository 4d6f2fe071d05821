"""What a worker's result backend is given when the worker starts."""

from __future__ import annotations

from celery import Celery

from routing.worker.results import wait_for_results

SILENCE_SECONDS = 7.0


def connection_of(url: str, **settings: object) -> dict[str, object]:
    """Return how a worker with this result backend connects to it."""
    app = Celery("results", backend=url, set_as_current=False)
    app.conf.update(settings)
    wait_for_results(app, silence_seconds=SILENCE_SECONDS)
    parameters: dict[str, object] = app.backend.connparams
    return parameters


def test_a_result_server_that_falls_silent_is_left_as_a_broker_is() -> None:
    parameters = connection_of("redis://localhost/1")
    assert parameters["socket_timeout"] == SILENCE_SECONDS
    assert parameters["socket_connect_timeout"] == SILENCE_SECONDS
    assert parameters["socket_keepalive"] is True


def test_a_unix_socket_is_given_nothing_that_it_does_not_take() -> None:
    parameters = connection_of("redis+socket:///run/redis.sock")
    assert parameters["socket_timeout"] == SILENCE_SECONDS
    assert not {"socket_keepalive", "socket_connect_timeout"} & parameters.keys()


def test_what_the_app_has_chosen_stays() -> None:
    settings = {"redis_socket_timeout": 90.0, "redis_socket_keepalive": False}
    parameters = connection_of("redis://localhost/1", **settings)
    assert parameters["socket_timeout"] == 90.0
    assert not parameters.get("socket_keepalive")
