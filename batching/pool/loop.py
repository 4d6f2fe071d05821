"""The event loop of batch functions that are ``async def``: one for each thread, while it lives.

So what a function keeps between calls, such as a pool of connections, goes on working.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

_OF_THREAD = threading.local()


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end and return its result.

    What interrupts it, such as a time limit, cancels it first.

    Raises:
        RuntimeError: a loop runs in this thread already.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        coroutine.close()
        raise RuntimeError(
            "an async batch function runs in an event loop of its own, and one runs here already: "
            "call it in a thread, with asyncio.to_thread"
        )
    loop, struck = _loop(), list[SoftTimeLimitExceeded]()
    task = loop.create_task(coroutine)

    def look(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See to a limit that struck in another callback, where the loop would only log it."""
        if isinstance(error := context.get("exception"), SoftTimeLimitExceeded):
            struck.append(error)
            task.cancel()
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(look)
    try:
        return loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        if struck:
            raise struck[0] from None
        raise


class _Kept:
    """A loop that is closed when its thread ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        if not self.loop.is_running():
            self.loop.close()


def _loop() -> asyncio.AbstractEventLoop:
    kept: _Kept | None = getattr(_OF_THREAD, "kept", None)
    if kept is None or kept.loop.is_closed():
        kept = _OF_THREAD.kept = _Kept()
    return kept.loop
