"""When a message expires: by the server's clock, as its producer meant it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from routing.message.expiry import by_server

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SOON = NOW + timedelta(seconds=30)
HOUR = timedelta(hours=1)
AT = int(NOW.timestamp() * 1000)


def expiry(expires: datetime, **given: Any) -> datetime:
    """Return when a message expires that the server took at NOW, 30 s before it does."""
    options: dict[str, Any] = {
        "eta": None,
        "retries": 0,
        "properties": {"expiration": "30000"},
        "noted": {"at": AT},
    }
    return by_server(expires, **{**options, **given})


@pytest.mark.parametrize("wrong", [HOUR, -HOUR, timedelta(days=400)])
def test_seconds_count_from_when_the_server_took_it(wrong: timedelta) -> None:
    assert expiry(SOON + wrong) == SOON


@pytest.mark.parametrize("wrong", [HOUR, -HOUR])
def test_what_was_delayed_expires_as_long_after_its_eta_as_it_says(wrong: timedelta) -> None:
    eta = NOW + wrong  # ready at NOW, by the server's clock
    found = expiry(eta + timedelta(seconds=30), eta=eta, noted={"at": AT, "due": AT})
    assert found == SOON


def test_the_way_to_the_server_changes_nothing() -> None:
    almost = SOON + timedelta(seconds=0.9)
    assert expiry(almost) is almost


@pytest.mark.parametrize(
    "given",
    [
        {"retries": 1},  # its time was put right with its first message
        {"noted": None},
        {"noted": {}},  # of a stock producer
        {"properties": {}},
        {"noted": {"at": "noon"}},
        {"noted": {"at": 10**30}},
        {"noted": {"due": AT}},
        {"noted": {"due": []}, "eta": SOON},
        {"properties": {"expiration": "nan"}},
        {"properties": {"expiration": "1e300"}},
        {"properties": 5},
    ],
)
def test_a_time_that_nothing_is_known_about_is_taken_as_it_is(given: dict[str, Any]) -> None:
    assert expiry(SOON + HOUR, **given) == SOON + HOUR
