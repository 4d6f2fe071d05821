"""What is no ordinary text runs all the same, as with stock Celery, or fails and says so."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import InvalidTaskError

from tests.apps.basic import close
from tests.apps.texts import create
from tests.support.broker import Broker
from tests.support.messages import task_message
from tests.support.results import value
from tests.support.servers import Server
from tests.support.wait import eventually
from tests.support.worker import Worker

#: A file name in Latin-1, as `os.fsdecode` has it.
NAME = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
VALUES = [NAME, {NAME: [NAME]}, math.inf, 10**40, -(2**65), "\x00", [[[[]]]], {"n": 2**64}]


@pytest.fixture(scope="module", params=["prefork", "threads"])
def url(request: pytest.FixtureRequest, valkey: Server) -> Iterator[str]:
    url = valkey.fresh_url()
    with Worker("tests.apps.texts", request.param, env={"CELERIAC_TEST_BROKER": url}):
        yield url


@pytest.fixture(scope="module")
def app(url: str) -> Iterator[Any]:
    app = create(url)
    yield app
    close(app)


@pytest.mark.parametrize("task", ["payloads.same", "payloads.batch"])
def test_any_value_that_json_carries_arrives_as_it_was_sent(app: Any, task: str) -> None:
    sent = [app.tasks[task].delay(one) for one in VALUES]
    many = [NAME, 10**40]
    sent += [app.AsyncResult(receipt.id) for receipt in app.tasks[task].delay_many(many)]
    assert [value(result, timeout=20) for result in sent] == [*VALUES, *many]


@pytest.mark.parametrize("task", ["payloads.same", "payloads.batch"])
def test_a_message_that_is_refused_and_has_an_id_gets_its_failure(
    app: Any, url: str, task: str
) -> None:
    refused = {secrets.token_hex(4): wrong for wrong in ({"retries": "x"}, {"timelimit": 5})}
    with Broker(url) as broker:
        for task_id, headers in refused.items():
            broker.client.lpush(
                "default", task_message(task, (1,), message_id=task_id, headers=headers)
            )
        bare, broken = secrets.token_hex(4), secrets.token_hex(4)
        broker.client.lpush("default", json.dumps({"headers": {"id": bare, "task": task}}))
        broker.client.lpush("default", task_message(task, message_id=broken, body="{{{"))
        for task_id in (*refused, bare, broken):
            with pytest.raises(InvalidTaskError):
                value(app.AsyncResult(task_id), timeout=20)


def test_an_id_that_can_be_no_key_is_refused_and_the_worker_goes_on(app: Any, url: str) -> None:
    with Broker(url) as broker:
        eventually(broker.holds_nothing)  # what was refused before is a dead letter by now
        dead = broker.length("default.dead")
        for field in ("id", "root_id", "group"):
            text = task_message("payloads.same", (1,), headers={field: NAME})
            broker.client.lpush("default", text)
        broker.client.lpush("default", b'{"headers": {"id": "\xff"}}')
        assert value(app.tasks["payloads.same"].delay(1), timeout=20) == 1
        eventually(lambda: broker.length("default.dead") == dead + 4)
        eventually(broker.holds_nothing)


def test_a_message_that_celery_cannot_even_refuse_is_kept_all_the_same(app: Any, url: str) -> None:
    with Broker(url) as broker:
        eventually(broker.holds_nothing)
        dead = broker.length("default.dead")
        unknown = json.loads(task_message("nobody.knows.it", (1,)))
        del unknown["headers"]["id"]
        broker.client.lpush("default", json.dumps(unknown))
        broker.client.lpush("default", json.dumps({**unknown, "body": None}))
        eventually(lambda: broker.length("default.dead") == dead + 2)
        eventually(broker.holds_nothing)
        assert value(app.tasks["payloads.same"].delay(1), timeout=20) == 1
