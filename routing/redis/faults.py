"""What an error of the server means: the one place that sorts them.

*Lost*: the connection, or the master behind it, is gone; whoever talks reconnects. *Refused*: the
server is there and will not do it now (somebody's slow script, full memory, no master); what
is owed is kept and tried again after a while, and nobody is charged for it. *Bug*: the call itself
is wrong, so trying again would not help; it is logged, and the loop goes on.

The engine's connections raise a refusal as `ServerRefused`, a lost connection to whoever does not
know better: so what outlives a lost connection, in kombu and Celery too, outlives a refusal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from amqp.exceptions import RecoverableConnectionError
from redis import exceptions

from routing.redis.silence import Wary


class ServerRefused(exceptions.ConnectionError):
    """The server is there, and will not do this now; the call has changed nothing."""


#: What a lost connection raises; a refusal is one of them.
LOST = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    OSError,
    RecoverableConnectionError,  # kombu's own, for a channel that is closed
)

#: What a server answers that refuses, or that finds the call itself wrong.
ANSWERED = (ServerRefused, exceptions.ResponseError)

#: What the client raises when a server refuses, or does not answer.
ANY_FAULT = exceptions.RedisError

#: Refusals by which a server says that it takes no writes now: it is no master any more, or has not
#: enough replicas or disk to be trusted with them. When that lasts, another connection may find the
#: one that does.
NO_WRITES = ("READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF")

#: Refusals that pass: a script that runs for too long, a data set that is being loaded, full
#: memory, a cluster that moves its slots.
_FOR_NOW = (
    "BUSY ",
    "LOADING",
    "OOM",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNKILLABLE",
)

_REFUSALS = (*NO_WRITES, *_FOR_NOW)

#: Servers before version 7 wrap what a script was refused into an error of the script; every server
#: wraps what ended a transaction.
_WRAPPED = tuple(
    f"{before}{code.strip()} " for code in _REFUSALS for before in ("-", "discarded because of: ")
)


class Fault(StrEnum):
    """What an error of the server means for who asked."""

    LOST = "lost"
    REFUSED = "refused"
    BUG = "bug"


def fault_of(error: BaseException) -> Fault:
    """Return what an error means.

    An error that another one was raised from counts as that one where it says nothing itself, as a
    library's own wrapping does.

    >>> fault_of(exceptions.ResponseError("BUSY Valkey is busy running a script")).value
    'refused'
    >>> fault_of(exceptions.ReadOnlyError("You can't write against a read only replica.")).value
    'refused'
    >>> fault_of(exceptions.ConnectionError("Connection reset by peer")).value
    'lost'
    >>> fault_of(exceptions.ResponseError("Command # 1 of pipeline caused error: OOM no")).value
    'refused'
    >>> fault_of(exceptions.ResponseError("WRONGTYPE Operation against a key")).value
    'bug'
    """
    if isinstance(error, ServerRefused | exceptions.BusyLoadingError):
        return Fault.REFUSED
    if isinstance(error, LOST):
        return Fault.LOST
    if not isinstance(error, exceptions.RedisError):
        cause = error.__cause__
        return fault_of(cause) if cause is not None and cause is not error else Fault.BUG
    text = answer_of(error)
    if text.startswith(_REFUSALS) or any(code in text for code in _WRAPPED):
        return Fault.REFUSED
    return Fault.BUG


def is_passing(error: BaseException) -> bool:
    """Return whether the same call may succeed later, as it is."""
    return fault_of(error) is not Fault.BUG


def is_final(error: BaseException) -> bool:
    """Return whether the server has said that the call itself is wrong, so that it never succeeds.

    >>> is_final(exceptions.ResponseError("WRONGTYPE Operation against a key"))
    True
    >>> is_final(ValueError("nobody has asked the server"))
    False
    """
    while not isinstance(error, exceptions.RedisError):
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return fault_of(error) is Fault.BUG


def is_lost(error: BaseException) -> bool:
    """Return whether the connection is lost, so that only a new one can help."""
    return isinstance(error, LOST) and not isinstance(error, ServerRefused)


def answer_of(error: BaseException) -> str:
    """Return what the server said, with its code.

    >>> answer_of(exceptions.OutOfMemoryError("command not allowed", status_code="OOM"))
    'OOM command not allowed'
    """
    # The client takes the code away from those that it has a class for.
    code = getattr(error, "status_code", None) or _CODES.get(type(error), "")
    # A pipeline puts the command before what the server said.
    text = str(error).rpartition(" of pipeline caused error: ")[2]
    return text if text.startswith(code) else f"{code} {text}"


_CODES: dict[type[BaseException], str] = {
    exceptions.ReadOnlyError: "READONLY",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.BusyLoadingError: "LOADING",
}


def sorted_error(error: exceptions.RedisError) -> exceptions.RedisError:
    """Return what to raise in the place of an error of the server."""
    if fault_of(error) is Fault.REFUSED and not isinstance(error, ServerRefused):
        return ServerRefused(answer_of(error))
    return error


class Sorting(Wary):
    """The part of a connection that raises refusals as `ServerRefused`."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read one reply."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except exceptions.NoScriptError:
            raise
        except exceptions.TimeoutError:
            if "timeout" not in options:  # else nobody knows whether a reply is due
                self.heard_nothing()
            raise
        except exceptions.RedisError as error:
            refused = sorted_error(error)
            if refused is error:
                raise
            raise refused from error


def sorting(connection_class: type[Any]) -> type[Any]:
    """Return a class of connections that raises refusals as `ServerRefused`, and is wary."""
    return type(f"Sorting{connection_class.__name__}", (Sorting, connection_class), {})
