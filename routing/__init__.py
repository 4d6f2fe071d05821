"""Where a message goes, how many may wait, and who is next.

Give an app its queue table, and every way to send a task routes by it::

    from celery import Celery
    from routing import install

    app = Celery("shop", broker="redis://localhost:6379/0")
    install(app, "queues.toml")

**The table** (`Topology`) is one TOML file: queues with their bounds and prefetch (`QueueConfig`),
and which task goes where (`Route`). A priority is a queue, and levels have names::

    [queues.orders]
    prefetch = 8
    max_length = 10_000

    [queues.reports]

    [routes]
    "shop.export" = { queue = "orders", low = "reports" }

**Sending** stays Celery's: ``export.delay(7)``, ``export.apply_async((7,), priority="low")``, or
``low_priority=True``, also on signatures in canvas and on beat's entries. A level that no queue
serves is an `UnknownLevel` before anything is published; a broker that is away is a
`BrokerUnreachable`.

**A full queue** does what the ``overflow`` of its entry in the table says. ``reject`` raises
`QueueFull`, which says when to try again; ``block`` waits for room first; ``drop_oldest``,
``drop_newest`` and ``dead_letter`` accept, and whoever waits for a dropped task's result gets
`Dropped`. A message above ``max_message_bytes`` is `MessageTooLarge`. A group is published whole or
not at all.

**Sending many** takes a few round trips instead of one for each message, from any iterable::

    receipts = export.delay_many(order_ids, priority="low")
    receipts.accepted, receipts.refused
    receipts.raise_for_refused()

``priority`` may be a function of the item. `apply_many` takes ``(args, kwargs)`` pairs, and
`enqueue_many` a task's name. Each item has a `Receipt`, and a call the `Receipts` of its items, in
order.

**Dead letters**: what will not be tried again is kept in the queue ``<queue>.dead`` with the
reason. A task that no retry can help says so by ``raise DeadLetter("why")``. ``celery deadletter``
lists, groups, replays and purges them; `routing.deadletters` has them as values.

**Workers** on Redis or Valkey run on the engine in `routing.transport`: prefetch is per queue and
an exact cap, what a worker holds outlives its connection, and each ending is counted.
``celery inspect queue_credits`` shows what a worker holds,
``celery control queue_prefetch orders 16`` changes what it may hold,
``celery inspect queue_waits`` shows how long messages had waited when they started.
``celery queues set orders paused=true`` changes a queue for all workers, until it is reset
(`routing.settings`). ``celery queues`` shows where every message is, how messages ended, and
what is missing (`routing.redis.ledger`). On other brokers, routes and levels work and the engine
is off.

**Errors** are one tree under `RoutingError`; see `routing.errors`.

A message's trip through the rooms, each step with its file:

- *publish*: the table says which queue (`publish/router.py`); Celery makes the message, and its
  connection is the engine's (`publish/amqp.py`); the queue's bound lets it in, or not
  (`transport/producing.py`, `transport/overflow.py`, `redis/lua/push.lua`).
- *fetch*: what is sent next is decided (`inflight/fetch_policy.py`) and sent
  (`transport/fetcher.py`, `redis/lua/exchange.lua`); what comes is held (`inflight/holdings.py`),
  decoded and handed to its consumer (`transport/delivery.py`).
- *hand-over*: it becomes a request (`worker/intake.py`, `worker/request.py`) and waits for a slot,
  by weight, reserve and limit (`worker/dispatcher.py`, `worker/scheduler.py`). What its slots can
  start soon is what the worker fetches (`worker/demand.py`); what gets no slot goes back to a
  worker that has one (`transport/stuck.py`).
- *ending*: whatever its run raises comes back as an ending (`worker/traced.py`); the request says
  which (`worker/request.py`) by ack or reject (`transport/message.py`); its credit is free
  (`inflight/holdings.py`), it waits in the outbox (`inflight/outbox.py`), and leaves with the next
  exchange or within milliseconds (`transport/settler.py`, `transport/carrier.py`).

The rooms: `topology` (the table), `message` (one message), `redis` (the server), `inflight` (what
this process holds), `transport` (kombu's side), `publish`, `worker`, `maintenance` (what workers do
for everybody), `deadletters`, `doctor`, `cli`. ``docs/architecture.md`` draws them.
"""

from __future__ import annotations

from routing.upstream import check_versions

check_versions()  # before anything of an older Celery is asked for what it does not have

from routing.errors import (
    BrokerUnreachable,
    DeadLetter,
    Dropped,
    EngineError,
    LevelPolicyFailed,
    MessageTooLarge,
    PublishRefused,
    QueueDraining,
    QueueFull,
    RoutingError,
    ScriptError,
    TooManyDeliveries,
    TopologyError,
    UnknownLevel,
    UnknownOption,
)
from routing.install import install
from routing.publish.bulk import enqueue_many
from routing.publish.receipts import Receipt, Receipts
from routing.topology.model import Route, Topology
from routing.topology.queue import QueueConfig

__all__ = [
    "BrokerUnreachable",
    "DeadLetter",
    "Dropped",
    "EngineError",
    "LevelPolicyFailed",
    "MessageTooLarge",
    "PublishRefused",
    "QueueConfig",
    "QueueDraining",
    "QueueFull",
    "Receipt",
    "Receipts",
    "Route",
    "RoutingError",
    "ScriptError",
    "TooManyDeliveries",
    "Topology",
    "TopologyError",
    "UnknownLevel",
    "UnknownOption",
    "enqueue_many",
    "install",
]
