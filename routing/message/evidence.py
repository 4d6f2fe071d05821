"""Why a message will not be tried again: what a dead letter carries beside its message.

`Evidence` is a value; whoever ends a message composes it, `bury` and `push` write it into the
message's text, and `routing.message.letter` reads it there. The server adds when it happened and
how often the message was delivered. Texts from outside are cut, so that a dead letter is never much
bigger than its message.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from billiard.einfo import ExceptionWithTraceback
from celery.utils.serialization import get_pickled_exception

#: failed: the task raised, and has no retries (left). dead: it said so itself, by `item.dead()` or
#: `DeadLetter`. rejected: `Reject(requeue=False)`. poison: it killed its worker too often.
#: undecodable: no task message, or arguments that cannot be read. unknown_task: nobody knows its
#: task. overflow: its queue was full, and keeps what overflows.
Reason = Literal["failed", "dead", "rejected", "poison", "undecodable", "unknown_task", "overflow"]

#: Characters of an exception's message: enough for any that is written for people.
MESSAGE_AT_MOST = 2_000

#: Characters of a traceback, from its end: some forty frames.
TRACEBACK_AT_MOST = 8_000

#: Characters of a name (task, id, queue, worker, exception).
NAME_AT_MOST = 255

#: Where code of nobody's application lies.
_LIBRARIES = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"])
_OURS = tuple(str(Path(__file__).parents[2] / name) for name in ("routing", "batching"))

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<function>.+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a message was set aside; empty fields are unknown.

    Attributes:
        reason: one word of `Reason`.
        queue, task, id: what it was.
        exception: type of the exception, with its module unless that is builtins.
        message, traceback: what the exception said, and its traceback's end.
        fingerprint: alike for what probably has one cause; see `fingerprint_of`.
        attempts: runs of the task, with retries.
        worker: node name of the worker that set it aside.
    """

    reason: Reason
    queue: str = ""
    task: str = ""
    id: str = ""
    exception: str = ""
    message: str = ""
    traceback: str = ""
    fingerprint: str = ""
    attempts: int = 0
    worker: str = ""

    @property
    def ending(self) -> str:
        """How the message ends where no dead letters are kept: the name of a counter."""
        refused = ("rejected", "undecodable", "unknown_task")
        return "rejected" if self.reason in refused else "failed"

    def rest(self) -> str:
        """Return the evidence as JSON without the opening brace.

        A script puts ``{"at":<milliseconds>,`` before it.
        """
        known = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(known, separators=(",", ":"))[1:]


def of_error(
    reason: Reason,
    error: BaseException,
    *,
    traceback: str = "",
    queue: str = "",
    task: Any = "",
    task_id: Any = "",
    attempts: int = 0,
    worker: str = "",
) -> Evidence:
    """Return the evidence that an exception gives.

    Arguments:
        reason: why the message is set aside.
        error: the exception.
        traceback: its traceback, as text.
        queue: the queue that the message came from.
        task: the task's name, as the message has it; anything at all in a hostile one.
        task_id: the message's id, likewise.
        attempts: runs of the task, with retries.
        worker: node name of the worker.
    """
    name, message = type_name(error), text_of(error)
    return Evidence(
        reason=reason,
        queue=queue,
        task=_name(task),
        id=_name(task_id),
        exception=_name(name),
        message=message[:MESSAGE_AT_MOST],
        traceback=traceback[-TRACEBACK_AT_MOST:],
        fingerprint=fingerprint_of(name, message, traceback),
        attempts=attempts,
        worker=_name(worker),
    )


def unwrap(exc_info: Any) -> BaseException:
    """Return the exception in what a pool reports, as the task raised it."""
    error = exc_info.exception
    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    unwrapped: BaseException = get_pickled_exception(error)
    return unwrapped


def type_name(error: BaseException) -> str:
    """Return the name of an exception's type, with its module unless that is builtins."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def fingerprint_of(exception: str, message: str, traceback: str) -> str:
    """Return twelve characters that are alike for failures which probably have one cause.

    Made of the exception's type and the innermost frame of the application (file and function, not
    the line, which moves with each release). Without such a frame, of the type and the message
    without its numbers.
    """
    frame = next(_app_frames(traceback), None)
    cause = frame or re.sub(r"\d+", "0", message[:MESSAGE_AT_MOST])
    digest = hashlib.sha1(f"{exception}|{cause}".encode(errors="replace"), usedforsecurity=False)
    return digest.hexdigest()[:12]


def _app_frames(traceback: str) -> Iterator[str]:
    """Yield the frames of the application as file:function, innermost first."""
    for found in reversed(list(_FRAME.finditer(traceback))):
        file, function = found["file"], found["function"]
        if any(library in file for library in _LIBRARIES) or file.startswith(_OURS):
            continue
        # Two parts of the path: machines have their checkouts in different places.
        yield f"{'/'.join(Path(file).parts[-2:])}:{function}"


def text_of(error: BaseException) -> str:
    """Return what an exception says; its class may fail at that."""
    try:
        return str(error)
    except Exception as problem:
        return f"<its text cannot be made: {type(problem).__name__}>"


def _name(value: Any) -> str:
    return str(value if value is not None else "")[:NAME_AT_MOST]
