"""Many messages, one call, one ending each.

A batch task is written for many items at once and called like any other task:

    from batching import Batch, BatchTask

    @app.task(base=BatchTask, model=Flight, max_size=500, max_wait=0.2)
    def load(batch: Batch[Flight]):
        for item, error in insert_many(batch):  # those that it could not insert
            item.fail(error)            # the others are done

    load.delay(row)                     # one item, as always

A message's trip, first in the worker's parent process:

- `consumer/intake.py` takes messages in: revoked and expired items end here, the others wait in a
  window (`consumer/window.py`), which decides, purely, when they get their turn for a slot
  (`consumer/flush.py`), and which of them a slot takes.
- `consumer/unit.py` is a batch that waits for its slot, then runs; `consumer/slots.py` says when
  one is free; `consumer/request.py` is an item; `message.py` is what travels to the pool process,
  `models.py` how models do.

Then in the pool process:

- `pool/run.py` opens the parcels, validates each item against the model (an invalid item fails
  alone, before the call), calls the function once (`pool/call.py`) and has each item settled.
- `pool/settle.py` replays each outcome through Celery's own tracer, so that results, autoretry,
  links, errbacks, chains, chords, signals and events work item by item; `pool/results.py` writes a
  batch's results in one step, and then sends what its items send.

Back in the parent each item is acknowledged by its own ending, after its outcome is stored.

What the function may do with an item is in `batch.py`: `item.done(result)`, `item.fail(error)`,
`item.retry(countdown=...)`, `item.dead(reason)`, `item.replace(signature)`; or it returns one
result per item, in their order or by `item.id`, and exceptions among them are failures. An item
that it says nothing about is done. What fails for good is kept among the queue's dead letters.

Whose fault is it when a call names no item and raises, ends its process or passes a time limit?
`consumer/trial.py` decides which smaller calls tell, `consumer/bisection.py` makes them: the one at
fault ends up alone, and alone is charged, or nothing succeeds, and all is tried again later. What
was given an outcome before keeps it, as `pool/notes.py` noted it where a kill leaves it readable.
The option `on_error` has the alternatives.

**Errors** are one tree under `BatchError`: `InvalidItem` (it does not fit the model),
`InvalidOption` (the task is defined wrongly), `OutcomeTwice` (the function gave it a second
outcome), and what a function can do wrong with its outcomes, which fails every item of the
call that had none before: `InvalidOutcome`, `ResultCountError`, `ResultIdsError`,
`ResultTypeError`. `NotSettled` is the worker's own: results could not be stored, and the messages
were requeued. An `Item` belongs to one `Batch`.

A class's own `__call__` surrounds the call of the function, which may be `async def`; the signals
`batch_prerun` and `batch_postrun` are sent before and after it.

Time limits apply to the call. Hooks and signals of an item (`before_start`, `task_prerun`,
`on_success`) run when it is settled, after the function. At least once: sinks key their rows by
`item.id`.
"""

from __future__ import annotations

import routing

if not hasattr(routing, "enqueue_many"):
    raise ImportError(
        "batching needs the package 'routing' that comes with it, and found another one at "
        f"{getattr(routing, '__file__', None)}: rename that, or start Python elsewhere"
    )

from batching.batch import Batch, Item
from batching.errors import (
    BatchError,
    InvalidItem,
    InvalidOption,
    InvalidOutcome,
    NotSettled,
    OutcomeTwice,
    ResultCountError,
    ResultIdsError,
    ResultTypeError,
)
from batching.pool.signals import batch_postrun, batch_prerun
from batching.task import BatchTask

__all__ = [
    "Batch",
    "BatchError",
    "BatchTask",
    "InvalidItem",
    "InvalidOption",
    "InvalidOutcome",
    "Item",
    "NotSettled",
    "OutcomeTwice",
    "ResultCountError",
    "ResultIdsError",
    "ResultTypeError",
    "batch_postrun",
    "batch_prerun",
]
