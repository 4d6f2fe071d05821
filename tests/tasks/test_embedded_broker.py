from __future__ import annotations

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]
import pytest
import redis
from celery.platforms import EX_UNAVAILABLE

from tasks import embedded
from tasks.broker import answers, wait_until_answers
from tasks.embedded import BrokerError, EmbeddedBroker
from tasks.settings import Settings
from tests.support.wait import eventually
from tests.tasks.conftest import free_port


@contextmanager
def client_of(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(embedded.url(settings), decode_responses=True) as client:
        yield client


@contextmanager
def command(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m tasks.broker`` as a process that does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.broker", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_queued_work_survives_a_restart(settings: Settings, broker: EmbeddedBroker) -> None:
    with client_of(settings) as client:
        client.lpush("bulk", "work")
    broker.stop()
    assert not answers(settings)
    broker.start()
    with client_of(settings) as client:
        assert client.lrange("bulk", 0, -1) == ["work"]


def test_the_url_stays_the_same_over_a_restart(settings: Settings, broker: EmbeddedBroker) -> None:
    before = embedded.url(settings)
    broker.stop()
    broker.start()
    assert embedded.url(settings) == before


@pytest.mark.usefixtures("broker")
def test_nobody_gets_in_without_the_password(settings: Settings) -> None:
    with client_of(settings) as client:
        kwargs = client.connection_pool.connection_kwargs
        stranger = redis.Redis(host=kwargs["host"], port=kwargs["port"])
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


@pytest.mark.usefixtures("broker")
def test_it_listens_on_loopback_only_and_never_evicts(settings: Settings) -> None:
    with client_of(settings) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.usefixtures("broker")
def test_the_password_is_for_its_owner_only_and_in_no_argument(settings: Settings) -> None:
    url_file = settings.data_dir / "broker.url"
    assert stat.S_IMODE(url_file.stat().st_mode) == 0o600
    with client_of(settings) as client:
        password = client.connection_pool.connection_kwargs["password"]
    for child in psutil.Process().children(recursive=True):
        assert password not in " ".join(child.cmdline())


def test_a_second_one_on_the_same_folder_is_refused(
    settings: Settings, broker: EmbeddedBroker
) -> None:
    with pytest.raises(BrokerError, match="already runs"):
        EmbeddedBroker(settings).start()
    broker.check()


def test_starting_and_stopping_twice_is_safe(settings: Settings, broker: EmbeddedBroker) -> None:
    broker.start()
    assert answers(settings)
    broker.stop()
    broker.stop()
    assert not answers(settings)


def test_another_program_on_the_port_moves_it_to_a_free_one(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.embedded_port))
        other.listen()
        with EmbeddedBroker(settings):
            assert answers(settings)
            assert f":{settings.embedded_port}/" not in embedded.url(settings)


def test_a_port_that_is_set_wins_over_the_one_of_last_time(
    settings: Settings, broker: EmbeddedBroker
) -> None:
    before = embedded.url(settings)
    broker.stop()
    moved = Settings(data_dir=settings.data_dir, embedded_port=free_port())
    with EmbeddedBroker(moved):
        assert embedded.url(moved) == before.replace(
            f":{settings.embedded_port}/", f":{moved.embedded_port}/"
        )
    unset = Settings(data_dir=settings.data_dir)
    with EmbeddedBroker(unset):
        assert f":{moved.embedded_port}/" in embedded.url(unset)


def test_a_port_that_is_set_and_taken_leaves_it_where_it_was(
    settings: Settings, broker: EmbeddedBroker
) -> None:
    before = embedded.url(settings)
    broker.stop()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with EmbeddedBroker(Settings(data_dir=settings.data_dir, embedded_port=taken)):
            assert embedded.url(settings) == before


def test_commands_say_how_to_start_it(environment: dict[str, str]) -> None:
    arguments = [sys.executable, "-m", "celery", "-A", "tasks", "queues"]
    found = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == EX_UNAVAILABLE
    assert "start it: make up" in found.stderr


def test_a_server_whose_starter_was_killed_is_ended_before_the_next_start(
    settings: Settings, environment: dict[str, str]
) -> None:
    with command(environment) as first:
        assert wait_until_answers(settings)
        with client_of(settings) as client:
            client.lpush("bulk", "work")
            leftover = int(client.info("server")["process_id"])
        first.kill()
        first.wait()
        assert psutil.pid_exists(leftover)
        with EmbeddedBroker(settings), client_of(settings) as client:
            assert client.lrange("bulk", 0, -1) == ["work"]
            assert int(client.info("server")["process_id"]) != leftover
        eventually(lambda: not psutil.pid_exists(leftover))


def test_a_server_that_cannot_start_says_why(settings: Settings, broker: EmbeddedBroker) -> None:
    broker.stop()
    manifest = next((broker.folder / "appendonlydir").glob("*.manifest"))
    manifest.write_text("this is not a manifest\n")
    with pytest.raises(BrokerError, match=r"(?s)ended with code 1.*manifest"):
        broker.start()


def test_the_command_runs_until_sigterm_and_leaves_nothing(
    settings: Settings, environment: dict[str, str]
) -> None:
    with command(environment) as process:
        assert wait_until_answers(settings)
        server = psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(30) == 0
        assert not any(child.is_running() for child in server)
    assert not answers(settings)


def test_the_command_lets_clients_leave_before_the_server_goes(
    settings: Settings, environment: dict[str, str]
) -> None:
    with command(environment) as process:
        assert wait_until_answers(settings)
        with client_of(settings) as worker:
            worker.ping()
            process.terminate()
            assert process.stdout is not None
            eventually(lambda: "stopping" in process.stdout.readline())
            worker.lpush("bulk", "requeued while stopping")
        assert process.wait(30) == 0


def test_wait_returns_as_soon_as_the_broker_answers(
    settings: Settings, environment: dict[str, str]
) -> None:
    with command(environment, "wait") as waiting, EmbeddedBroker(settings):
        assert waiting.wait(30) == 0


def test_with_a_broker_of_ones_own_nothing_is_started(
    environment: dict[str, str], broker_url: str
) -> None:
    environment["CELERIAC_BROKER_URL"] = broker_url
    with command(environment, "wait") as waiting:
        assert waiting.wait(30) == 0
    with command(environment) as process:
        assert process.stdout is not None
        assert "nothing to start" in process.stdout.readline()
        assert not psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(30) == 0
