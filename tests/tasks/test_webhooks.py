"""Each call ends by what the other side answers, and says when it may come again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from batching.message import key_of
from batching.outcomes import Dead, Done, Failed, Retried
from tasks import webhooks
from tasks.webhooks import AT_ONCE, Call, deliver

ANSWERS: dict[str, tuple[int, dict[str, str]]] = {
    "/ok": (204, {}),
    "/later": (429, {"Retry-After": "7"}),
    "/much-later": (503, {"Retry-After": "999999"}),
    "/whenever": (503, {"Retry-After": "soon"}),
    "/down": (500, {}),
    "/gone": (410, {}),
    "/moved": (301, {"Location": "/ok"}),
}


@dataclass
class Receiver:
    """A server, and what it was sent."""

    url: str = ""
    calls: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.calls.append((self.path, body, dict(self.headers)))
            receiver.connections.add(self.client_address)
            status, headers = ANSWERS.get(self.path, (204, {}))
            if self.path == "/at":
                status, headers = 503, {"Retry-After": formatdate(time.time() + 60, usegmt=True)}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield receiver
    webhooks.client().close()
    webhooks._made.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()


def test_each_call_ends_by_its_answer(receiver: Receiver) -> None:
    paths = ["/ok", "/later", "/much-later", "/whenever", "/down", "/gone", "/moved", "/at"]
    found = dict(
        zip(paths, deliver.run_many([{"url": receiver.url + p} for p in paths]), strict=True)
    )
    assert found["/ok"] == Done(204)
    pauses = {path: one.countdown for path, one in found.items() if isinstance(one, Retried)}
    assert 50 < (pauses.pop("/at") or 0) <= 60
    assert pauses == {"/later": 7.0, "/much-later": 3600.0, "/whenever": None, "/down": None}
    assert found["/gone"] == Dead("the receiver answered 410 Gone")
    assert isinstance(found["/moved"], Dead)


def test_a_receiver_that_is_away_is_tried_again_and_does_not_touch_the_others(
    receiver: Receiver,
) -> None:
    away, good = deliver.run_many([{"url": "http://127.0.0.1:1/x"}, {"url": receiver.url + "/ok"}])
    assert isinstance(away, Retried)
    assert isinstance(away.error, httpx.ConnectError)
    assert good == Done(204)


def test_calls_carry_their_body_headers_and_a_key_of_their_own(receiver: Receiver) -> None:
    sent = {"url": receiver.url + "/ok", "body": {"order": 7}, "headers": {"X-Shop": "3"}}
    deliver.run_many([sent, sent])
    (_, body, headers), (_, _, others) = receiver.calls
    assert body == {"order": 7}
    assert headers["X-Shop"] == "3"
    assert headers["Idempotency-Key"] != others["Idempotency-Key"]


def test_the_connections_of_a_process_are_few_and_kept(receiver: Receiver) -> None:
    for _ in range(3):
        deliver.run_many([{"url": receiver.url + "/ok"}] * 40)
    assert len(receiver.calls) == 120
    assert len(receiver.connections) <= AT_ONCE


def test_batches_are_of_one_destination() -> None:
    one, other = Call(url="https://a.example/x"), Call(url="https://a.example:444/x")
    keys = {key_of(deliver, (call.model_dump(),), {}) for call in (one, one, other)}
    assert keys == {"https://a.example", "https://a.example:444"}


def test_what_is_no_url_fails_alone_and_says_so() -> None:
    (outcome,) = deliver.run_many([{"url": "ftp://a.example"}])
    assert isinstance(outcome, Failed)
    assert "url" in str(outcome.error)
    assert "https:// or http://" in str(outcome.error)


def test_a_call_that_can_never_be_made_is_given_up_and_repeats_no_other(receiver: Receiver) -> None:
    good = {"url": receiver.url + "/ok"}
    bad = [{**good, "headers": {"X-A": value}} for value in ("a\nb", "\u20ac")]
    first, second, third, fourth = deliver.run_many([good, *bad, good])
    assert first == fourth == Done(204)
    for outcome in (second, third):
        assert isinstance(outcome, Dead)
        assert "cannot be made" in outcome.reason
    assert len(receiver.calls) == 2
