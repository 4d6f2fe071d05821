"""Calls of other people's servers: batched by destination, each with its own ending.

``deliver.delay(url="https://shop.example/hook", body={"order": 7})`` is one call. A worker makes
those for one destination together, some at a time, over connections that it keeps open. What the
other side answers decides how each ends: done, later, or a dead letter.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict

from batching import Batch, BatchTask, Item
from tasks.celery import app

#: Calls of one destination at a time. More would be an attack to a small server.
AT_ONCE = 8

#: Seconds that a receiver may be silent before it is tried again later; and that its answer's body
#: may take, of which nothing is wanted.
ANSWER_SECONDS = 10.0

#: The other side may ask for more patience than anybody has.
LONGEST_PAUSE_SECONDS = 3600.0

#: Answers that may be others in a while (RFC 9110; 425 is of RFC 8470, 429 of RFC 6585).
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


#: Of calls that can never be made.
NEVER = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)


def _is_http(url: str) -> str:
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"expected a URL that begins with https:// or http://, got {url!r}")
    return url


class Call(BaseModel):
    """One call: a POST of JSON."""

    model_config = ConfigDict(frozen=True)

    url: Annotated[str, AfterValidator(_is_http)]
    body: dict[str, Any] = {}
    headers: dict[str, str] = {}


def destination(call: Call) -> str:
    """Return the server that a call goes to."""
    url = httpx.URL(call.url)
    return f"{url.scheme}://{url.netloc.decode()}"


@functools.cache
def _made() -> httpx.Client:
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
    return httpx.Client(timeout=ANSWER_SECONDS, limits=limits, follow_redirects=False)


_making = threading.Lock()


def client() -> httpx.Client:
    """The connections of this process; a forked child opens its own."""
    with _making:
        return _made()


os.register_at_fork(after_in_child=_made.cache_clear)


@app.task(
    base=BatchTask,
    shared=False,
    model=Call,
    key=destination,
    max_size=50,
    max_wait=0.2,
    ignore_result=True,
    store_errors_even_if_ignored=True,  # whoever asks learns why a call was given up
    retry_backoff=True,
    retry_backoff_max=600,
    max_retries=12,  # with this backoff about an hour
)
def deliver(batch: Batch[Call]) -> None:
    """Make the calls of one destination."""
    make = functools.partial(_answer, client())
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhooks") as threads:
        answers = threads.map(make, batch)
        for item, answer in zip(batch, answers, strict=True):
            _end(item, answer)


def _answer(connections: httpx.Client, item: Item[Call]) -> httpx.Response | Exception:
    call = item.value
    # A call may be made again after its answer was lost: the same key says that it is the same.
    headers = {"Idempotency-Key": item.id, **call.headers}
    until = time.monotonic() + ANSWER_SECONDS
    try:
        with connections.stream("POST", call.url, json=call.body, headers=headers) as answer:
            # Read, so that the connection can be used again, and not decoded.
            for _ in answer.iter_raw():
                if time.monotonic() > until:
                    break
            return answer
    except Exception as error:  # of this call alone: the others go on
        return error


def _end(item: Item[Call], answer: httpx.Response | Exception) -> None:
    """End a call by what came back."""
    if isinstance(answer, httpx.TransportError) and not isinstance(answer, NEVER):
        item.retry(exc=answer)
    elif isinstance(answer, Exception):
        item.dead(f"the call cannot be made: {answer!r}")
    elif answer.is_success:
        item.done(answer.status_code)
    elif answer.status_code in PASSING:
        item.retry(countdown=pause_of(answer), exc=_as_error(answer))
    else:
        item.dead(f"the receiver answered {answer.status_code} {answer.reason_phrase}")


def pause_of(answer: httpx.Response) -> float | None:
    """Return for how many seconds a receiver asks to be left alone; None when it does not."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE_SECONDS)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(0.0, until.timestamp() - time.time()), LONGEST_PAUSE_SECONDS)


def _as_error(answer: httpx.Response) -> httpx.HTTPStatusError:
    text = f"the receiver answered {answer.status_code} {answer.reason_phrase}"
    return httpx.HTTPStatusError(text, request=answer.request, response=answer)
