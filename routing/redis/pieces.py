"""Messages that are pushed in several calls, as one call moves only so much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from routing.message.eta import Delay
from routing.redis.bounds import Terms
from routing.redis.values import Pushed

#: Bytes of messages in one push: some milliseconds of the server.
PUSH_BYTES = 4 * 1024 * 1024

T = TypeVar("T", bound=str | bytes | Delay)


def pieces_of(messages: Sequence[T], *, at_most: int) -> Iterator[Sequence[T]]:
    """Yield messages in their order, cut so that each piece can go in one call.

    >>> [len(piece) for piece in pieces_of(["x" * 1_500_000] * 7 + ["x"] * 4, at_most=3)]
    [2, 2, 2, 3, 2]
    """
    start = size = 0
    for end, message in enumerate(messages):
        bytes_ = len(message.payload if isinstance(message, Delay) else message)
        if end > start and (end - start == at_most or size + bytes_ > PUSH_BYTES):
            yield messages[start:end]
            start, size = end, 0
        size += bytes_
    yield messages[start:]


def push_pieces(
    call: Callable[[Sequence[T], Terms], Pushed], messages: Sequence[T], terms: Terms, policy: str
) -> Pushed:
    """Return what became of messages, as if they were pushed in one call.

    Arguments:
        call: pushes some of them, on these terms.
        messages: all of them; those that get in "whole" are never cut.
        terms: whether the bounds hold for them.
        policy: what the queue does with those that have no room.
    """
    if len(messages) <= 1 or terms == "whole":
        return _until_taken(call, messages, terms, policy)
    total: Pushed | None = None
    passed = 0
    for piece in pieces_of(messages, at_most=len(messages)):
        if total is not None and total.accepted < passed:
            if policy in ("block", "drop_oldest"):
                break  # they are tried again, or counted as refused in the end
            terms = "none"
        pushed = _until_taken(call, piece, terms, policy)
        total = pushed if total is None else _sum(total, pushed)
        passed += len(piece)
    assert total is not None
    return total


def _until_taken(
    call: Callable[[Sequence[T], Terms], Pushed], messages: Sequence[T], terms: Terms, policy: str
) -> Pushed:
    """Return what became of messages for which room may be made step by step."""
    pushed = call(messages, terms)
    while policy == "drop_oldest" and pushed.accepted < len(messages) and not pushed.drains:
        pushed = _sum(pushed, call(messages[pushed.accepted :], terms))
    return pushed


def _sum(one: Pushed, more: Pushed) -> Pushed:
    accepted, dropped = one.accepted + more.accepted, one.dropped + more.dropped
    return replace(
        one,
        accepted=accepted,
        dropped=dropped,
        age_ms=one.age_ms or more.age_ms,
        drains=one.drains or more.drains,
    )
