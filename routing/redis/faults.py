"""What an error of the server means: the one place that sorts them.

*Lost*: the connection, or the master behind it, is gone; whoever talks reconnects. *Refused*: the
server is there and will not do it now (somebody's slow script, full memory); what
is owed is kept and tried again after a while, and nobody is charged for it. *Bug*: the call itself
is wrong, so trying again would not help; it is logged, and the loop goes on.
"""

from __future__ import annotations

from enum import StrEnum

from redis import exceptions

#: What a lost connection raises.
LOST = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)

#: What the client raises when a server refuses, or does not answer.
ANY_FAULT = exceptions.RedisError

#: Refusals by which a server says that it takes no writes now: it is no master any more, or has not
#: enough replicas or disk to be trusted with them. Another connection may find the one that does.
_NO_WRITES = ("READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF")

#: Refusals that pass: a script that runs for too long, a data set that is being loaded, full
#: memory, a cluster that moves its slots, a server that is full of clients.
_FOR_NOW = (
    "BUSY",
    "LOADING",
    "OOM",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNKILLABLE",
    "ERR max number of clients",
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
    'lost'
    >>> fault_of(exceptions.ResponseError("Command # 1 of pipeline caused error: BUSY")).value
    'refused'
    >>> fault_of(exceptions.ResponseError("WRONGTYPE Operation against a key")).value
    'bug'
    """
    if isinstance(error, LOST):
        return Fault.LOST
    if isinstance(error, exceptions.ReadOnlyError | exceptions.MasterDownError):
        return Fault.LOST
    # The client takes the code away from those that it has a class for.
    if isinstance(
        error,
        exceptions.OutOfMemoryError | exceptions.TryAgainError | exceptions.ClusterDownError,
    ):
        return Fault.REFUSED
    if not isinstance(error, exceptions.RedisError):
        cause = error.__cause__
        return fault_of(cause) if cause is not None and cause is not error else Fault.BUG
    # A pipeline puts the command before what the server said.
    text = str(error).rpartition(" of pipeline caused error: ")[2]
    if text.startswith(_NO_WRITES):
        return Fault.LOST
    # Servers before version 7 wrap what a script was refused into an error of the script.
    if text.startswith(_FOR_NOW) or any(f"-{code} " in text for code in _FOR_NOW):
        return Fault.REFUSED
    return Fault.BUG


def is_passing(error: BaseException) -> bool:
    """Return whether the same call may succeed later, as it is."""
    return fault_of(error) is not Fault.BUG
