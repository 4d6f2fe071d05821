"""Bodies are decoded exactly as kombu decodes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import dumps, registry
from kombu.serialization import loads as kombu_loads

from routing.message.codec import loads

TEXT = st.text(st.characters(codec="utf-8"))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | TEXT
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@given(value=JSON)
def test_json_decodes_as_by_kombu(value: Any) -> None:
    body = json.dumps([[value], {}, {}]).encode()
    ours = loads(body, "application/json", "utf-8", {"application/json"})
    theirs = kombu_loads(body, "application/json", "utf-8", {"application/json"})
    assert ours == theirs
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2013, 1, 2, tzinfo=UTC),
        Decimal("1.10"),
        b"\xff\x00",
        {"big": 2**70},
        {"at the edge": 2**63 - 1},
        float("inf"),
        "\ud800",
    ],
)
def test_what_only_kombu_can_decode_is_left_to_it(value: Any) -> None:
    content_type, encoding, body = dumps([[value], {}, {}], "json")
    body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    [[decoded], _, _] = loads(body, content_type, encoding, None)
    assert decoded == value


def test_a_broken_body_is_kombus_error() -> None:
    with pytest.raises(DecodeError):
        loads(b"[[1, {}", "application/json", "utf-8", None)


def test_content_that_is_not_accepted_is_refused() -> None:
    body = dumps([[1], {}, {}], "pickle")[2]
    with pytest.raises(ContentDisallowed):
        loads(body, "application/x-python-serialize", "binary", {"application/json"})


def test_a_decoder_that_the_app_has_registered_is_used() -> None:
    kept = registry._decoders["application/json"]
    registry._decoders["application/json"] = lambda body: ["its own"]
    try:
        assert loads(b"[[1], {}, {}]", "application/json", "utf-8", None) == ["its own"]
    finally:
        registry._decoders["application/json"] = kept
