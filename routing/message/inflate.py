"""Refuses compressed bodies that would fill the worker's memory: 1 MB can hold 1 GB of zeros."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol

#: Bytes that a compressed body may hold: far more than a message should, and what a worker's
#: machine has to spare.
INFLATED_AT_MOST = 256 * 1024**2

#: Bytes that are inflated at a time, and forgotten.
STEP_BYTES = 1024**2


class _Inflater(Protocol):
    eof: bool

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


#: Names of kombu's compressions that can be inflated step by step.
_KINDS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), zlib.decompressobj),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), bz2.BZ2Decompressor),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), lzma.LZMADecompressor),
}


def check_inflated(body: bytes, kind: Any, *, at_most: int = INFLATED_AT_MOST) -> None:
    """Refuse a compressed body that holds too much.

    Arguments:
        body: the compressed body.
        kind: how it says that it was compressed; kinds that cannot be checked are let through.
        at_most: bytes that it may hold.

    Raises:
        ValueError: it holds more.
    """
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None or not isinstance(body, bytes):
        return
    inflater: _Inflater = make()
    size = 0
    try:
        while not inflater.eof:
            piece = inflater.decompress(body, STEP_BYTES)
            body = getattr(inflater, "unconsumed_tail", b"")
            size += len(piece)
            if size > at_most:
                raise ValueError(f"its {kind} body holds more than {at_most} bytes")
            if not piece and not body:
                return  # cut off: whoever reads it says so
    except (zlib.error, OSError, lzma.LZMAError, EOFError):
        return  # likewise
