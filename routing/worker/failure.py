"""What an error becomes on its way from the pool to the worker's parent: text, no live objects.

A live error holds frames and all that is local in them, a pickled traceback of Celery's tracer has
some 300 KB, and an error that cannot be unpickled would end the parent. So it is replaced, once the
tracer is done with it, by a `StandIn`: its type's name, its arguments as far as they are plain, and
its text. `Failure` carries that with the traceback's text in the place of an `ExceptionInfo`.
"""

from __future__ import annotations

from functools import lru_cache
from traceback import format_exception
from typing import Any

from billiard.einfo import ExceptionInfo, RemoteTraceback
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils.encoding import safe_repr

from routing.errors import DeadLetter
from routing.message.evidence import text_of, unwrap

#: Characters of an error's text, and of a traceback, that travel: more than any log shows.
TEXT_AT_MOST = 50_000

#: What means something of its own to whoever ends the message. Nothing else of Celery's is here: a
#: task that passes on the `WorkerLostError` of another one has not lost its own process.
_KINDS: tuple[type[Exception], ...] = (Retry, Reject, Ignore, DeadLetter)


class StandIn(Exception):
    """Takes the place of an error: the same name, text and representation, nothing alive.

    Each is of a class of its own with the name of the error's type, derived from this one.
    """

    text = ""
    shown = ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.shown

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        state = {name: value for name, value in vars(self).items() if name in _CARRIED}
        base: Any = next((base for base in _KINDS if isinstance(self, base)), Exception)
        return _restore, (base, kind.__module__, kind.__qualname__, self.args, state)


#: Attributes of a stand-in that travel: those of `StandIn`, `Reject` and `Retry`.
_CARRIED = frozenset({"text", "shown", "reason", "requeue", "message", "exc", "excs", "when"})


class Failure(ExceptionInfo):
    """An `ExceptionInfo` that holds nothing but text."""

    def __init__(self, exception: Exception, traceback: str, internal: bool = False) -> None:
        self.type = type(exception)
        self.exception = exception
        self.tb = None
        self.traceback = traceback
        self.internal = internal
        # What the logging module shows of an error from elsewhere.
        exception.__cause__ = RemoteTraceback(traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.exception, self.traceback, self.internal)


def failure(info: ExceptionInfo) -> Failure:
    """Return what a pool reports about an error, without the error; its frames are let go."""
    if isinstance(info, Failure):
        return info
    error = unwrap(info)
    try:
        text = str(info.traceback or "")[-TEXT_AT_MOST:]
        return Failure(stand_in(error), text, bool(info.internal))
    finally:
        forget_frames(error)


def failure_of(error: BaseException) -> Failure:
    """Return what is to be reported about an error that Celery's tracer did not report."""
    try:
        text = "".join(format_exception(error))[-TEXT_AT_MOST:]
    except Exception as problem:
        text = f"<its traceback cannot be made: {type(problem).__name__}>"
    try:
        return Failure(stand_in(error), text)
    finally:
        forget_frames(error)


def stand_in(error: BaseException) -> Exception:
    """Return an exception that is like the error in name and text, and holds nothing of it."""
    kind = type(error)
    base: Any = next((base for base in _KINDS if isinstance(error, base)), Exception)
    made = _class(base, str(kind.__module__), kind.__qualname__)
    found = made.__new__(made)
    found.text = text_of(error)[:TEXT_AT_MOST]
    found.shown = safe_repr(error)[:TEXT_AT_MOST]
    found.args = tuple(_plain(argument) for argument in _arguments(error))
    if isinstance(error, Reject):
        found.reason, found.requeue = _plain(error.reason), bool(error.requeue)
        found.args = (found.reason, found.requeue)
    if isinstance(error, Retry):
        found.message = None if error.message is None else _plain(error.message)
        found.exc = None if error.exc is None else stand_in(error.exc)
        found.excs, found.when = _plain(error.excs), _plain(error.when)
        found.args = (found.text,)
    return found  # type: ignore[no-any-return]


def forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and those behind it hold, and so of all their locals."""
    seen: set[int] = set()
    behind = [error]
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        behind += [one.__context__, one.__cause__]
        if isinstance(one, Retry):
            behind.append(one.exc)
            # Celery's holds itself, and with it the message that is sent again.
            one.args = tuple(argument for argument in one.args if argument is not one)
        if isinstance(one, BaseExceptionGroup):
            behind += one.exceptions


def _restore(
    base: Any, module: str, name: str, args: tuple[Any, ...], state: dict[str, Any]
) -> Exception:
    made = _class(base, module, name)
    restored = made.__new__(made)
    restored.args = args
    restored.__dict__.update(state)
    return restored  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _class(base: Any, module: str, name: str) -> Any:
    """Return the class of stand-ins of this name; a class a failure would be garbage in cycles."""
    bases = (StandIn,) if base is Exception else (StandIn, base)
    short = name.rpartition(".")[2]
    return type(short, bases, {"__module__": module, "__qualname__": name})


def _arguments(error: BaseException) -> tuple[Any, ...]:
    arguments = getattr(error, "args", ())
    return arguments if isinstance(arguments, tuple) else ()


def _plain(value: Any) -> Any:
    """Return a value that travels as it is, the text of any other."""
    if value is None or type(value) in (bool, int, float):
        return value
    text = str(value) if type(value) is str else safe_repr(value)
    return text[:TEXT_AT_MOST]
