"""A compressed body may hold a lot, and not everything."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from routing.message.codec import check_inflated

MEGABYTE = 1024**2
KINDS = [("gzip", zlib.compress), ("bzip2", bz2.compress), ("application/x-lzma", lzma.compress)]


@pytest.mark.parametrize(("kind", "compress"), KINDS)
def test_a_body_that_holds_too_much_is_refused(kind: str, compress: Callable[..., bytes]) -> None:
    body = compress(b"\0" * 5 * MEGABYTE)
    assert len(body) < MEGABYTE / 10
    check_inflated(body, kind, at_most=5 * MEGABYTE)
    with pytest.raises(ValueError, match="holds more than 4194304 bytes"):
        check_inflated(body, kind, at_most=4 * MEGABYTE)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", "gzip"), (zlib.compress(b"x" * 99)[:-5], "gzip"), (b"no", "bzip2"), (b"no", ["gzip"])],
)
def test_what_is_broken_or_unknown_is_left_to_its_reader(body: bytes, kind: Any) -> None:
    check_inflated(body, kind)
