"""Signals around the call of a batch function, in the process that runs it.

``batch_prerun`` is sent before the call, ``batch_postrun`` after it, before the items end; both
with the task as sender and the ``batch``, whose items have their outcomes then. Those of Celery
(``task_prerun`` and its like) are sent for each item, when it ends.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

batch_prerun = Signal(name="batch_prerun", providing_args={"batch"})
batch_postrun = Signal(name="batch_postrun", providing_args={"batch", "seconds"})
