"""Whether the worker of this process was told to stop: its loop may notice seconds later (gevent).

An exit status of 0 is a reason to stop, as in celery.worker.state.maybe_shutdown.
"""

from __future__ import annotations

from celery.worker import state


def is_stopping() -> bool:
    """Whether it stops, warm or cold."""
    return _is_reason(state.should_stop) or is_cut_off()


def is_cut_off() -> bool:
    """Whether it stops cold: what it is doing is given up."""
    return _is_reason(state.should_terminate)


def _is_reason(reason: object) -> bool:
    return reason is not None and reason is not False
