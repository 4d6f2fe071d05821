"""A live platform at one moment, as values: `survey` reads it, a doctor judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from routing.redis.ledger import Ledger
from routing.topology.live import QueueSettings
from routing.topology.model import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a broker says about itself; None for what it keeps to itself."""

    product: str = "redis"
    version: str = "7.0.0"
    role: str = "master"
    is_cluster: bool = False
    eviction: str = "noeviction"
    used_bytes: int = 0
    max_bytes: int = 0
    machine_bytes: int = 0
    appends: bool = True
    fsync: str | None = "everysec"
    saves: str | None = ""
    write_failed: bool = False
    save_failed: bool = False
    #: False when it does not tell its user anything of the above (INFO is denied).
    is_told: bool = True
    #: Commands that the engine needs and that its user may not run.
    denied: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """What one worker answered; a stock worker has queues and nothing else.

    Attributes:
        ahead_seconds: its clock less the server's; None when it could not ask.
        table: a digest of its queue table.
        versions: package -> version.
    """

    name: str
    queues: Sequence[str] = ()
    is_stock: bool = False
    ahead_seconds: float | None = None
    table: str = ""
    lease_seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unacked:
    """The unacknowledged messages of a broker database, by who looks after them.

    Attributes:
        leased: held under a lease that has not run out.
        expired: held under a lease that ran out a while ago.
        unleased: fetched by an engine, without a lease.
        stock: fetched by stock workers.
        stock_overdue: of those, how many are older than their visibility timeout.
        holders: host name of a worker -> messages that it holds under leases; a worker that has
            just begun may be missing.
    """

    leased: int = 0
    expired: int = 0
    unleased: int = 0
    stock: int = 0
    stock_overdue: int = 0
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A platform at one moment.

    Attributes:
        table: the queue table of the app that asks, and its digest.
        here_ahead_seconds: this machine's clock less the server's.
        overdue: queue -> delayed messages whose time passed a while ago.
        stranded: queue outside of the table -> messages that wait in it.
        settings: queue -> what was set for it at run time, in the place of the table's fields.
        visibility_seconds: kombu's visibility timeout; stock workers take over what is older.
    """

    table: Topology
    digest: str
    server: Server
    ledger: Ledger
    workers: Sequence[WorkerReport] = ()
    unacked: Unacked = field(default_factory=Unacked)
    here_ahead_seconds: float = 0.0
    overdue: Mapping[str, int] = field(default_factory=dict)
    stranded: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, QueueSettings] = field(default_factory=dict)
    visibility_seconds: float = 3600.0

    @property
    def has_engine(self) -> bool:
        """Whether any worker of the engine answered."""
        return any(not worker.is_stock for worker in self.workers)

    @property
    def silent(self) -> dict[str, int]:
        """Host name of a worker that did not answer -> messages that it holds."""
        answered = {worker.name for worker in self.workers}
        return {name: n for name, n in self.unacked.holders.items() if name not in answered}
