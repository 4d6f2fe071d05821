"""An app whose tasks fail in every way that an error can be difficult.

A worker gets its broker from the environment:

    CELERIAC_TEST_BROKER   the broker URL; traces and results go there too
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import gevent
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.signals import task_failure, task_postrun

from batching import Batch, BatchTask
from tests.apps.basic import Traces
from tests.apps.basic import create as create_basic

TABLE: Mapping[str, Any] = {"queues": {"default": {"prefetch": 1_000}}}


class NeedsTwo(Exception):
    """Cannot be unpickled: pickle calls it with its one argument."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


class Unreducible(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("cannot be reduced")


class Mute(Exception):
    """Has no text and no representation."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Homebound(Exception):
    """Can be unpickled in the process only that made it."""

    def __reduce__(self) -> Any:
        return _at_home, (os.getpid(), self.args)


def _at_home(pid: int, args: tuple[Any, ...]) -> Homebound:
    if pid != os.getpid():
        raise LookupError("not at home")
    return Homebound(*args)


class Locked(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked", threading.Lock())
        self.lock = threading.Lock()


class Odd(BaseException):
    """An error that is no Exception."""


class NoExit(SystemExit):
    """An exit that cannot be unpickled."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(NeedsTwo(code, text))


def _local() -> Exception:
    class Local(Exception):
        pass

    return Local("local")


#: Errors of a task that ends by them, in every pool.
ERRORS: Mapping[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("plain"),
    "needs two": lambda: NeedsTwo(1, "two"),
    "unreducible": lambda: Unreducible("unreducible"),
    "mute": Mute,
    "homebound": lambda: Homebound("homebound"),
    "locked": Locked,
    "local": _local,
    "memory": lambda: MemoryError("none left"),
    "recursion": lambda: RecursionError("too deep"),
    "generator": GeneratorExit,
    "cancelled": lambda: asyncio.CancelledError("cancelled"),
    "timeout": lambda: gevent.Timeout(1),
    "odd": lambda: Odd("odd"),
    "lost elsewhere": lambda: WorkerLostError("another one's"),
    "group": lambda: ExceptionGroup("several", [NeedsTwo(1, "two"), ValueError("one")]),
}

WRAPS: Mapping[str, Callable[[BaseException], BaseException]] = {
    "raised": lambda error: error,
    "rejected": Reject,
    "ignored": Ignore,
}


def create(broker: str) -> Celery:
    """Return the app on this broker."""
    app = create_basic(broker, table=TABLE, worker_max_memory_per_child=None)
    traces = Traces(broker)
    _add_raising(app, traces)
    _add_hooked(app, traces)
    _add_heavy(app)
    _add_heavy_batches(app)
    _watch(traces)
    return app


def _add_raising(app: Celery, traces: Traces) -> None:
    @app.task(name="failing.one", shared=False, bind=True)
    def one(self: Any, wrap: str, kind: str) -> None:
        """End by the error that the arguments name."""
        traces.ran(self.request.id)
        raise WRAPS[wrap](ERRORS[kind]())

    @app.task(name="failing.retries", shared=False, bind=True, max_retries=1)
    def retries(self: Any, kind: str) -> None:
        """Retry by an error, then end by it."""
        traces.ran(self.request.id)
        raise self.retry(exc=ERRORS[kind](), countdown=0)

    @app.task(name="failing.exits", shared=False)
    def exits() -> None:
        raise NoExit(1, "two")

    @app.task(name="failing.batch", shared=False, base=BatchTask, max_size=50, max_wait=0.2)
    def batch(batch: Batch[Any]) -> None:
        """End each item by the error that it names; without one it is done."""
        for item in batch:
            traces.ran(item.id)
            if item.value is not None:
                wrap, kind = item.value
                item.fail(WRAPS[wrap](ERRORS[kind]()))

    options = {"base": BatchTask, "max_size": 50, "max_wait": 0.1, "on_error": "retry"}

    @app.task(name="failing.whole", shared=False, **options)
    def whole(batch: Batch[str]) -> None:
        """Fail with the error that the first item names."""
        for item in batch:
            traces.ran(item.id)
        raise ERRORS[batch[0].value]()


def _add_hooked(app: Celery, traces: Traces) -> None:
    def hooked(base: Any, hook: str) -> Any:
        def call(self: Any, *args: Any) -> None:
            # The arguments of the task are among those of every hook.
            kind = next(arg[0] for arg in args if isinstance(arg, (list, tuple)) and arg)
            raise ERRORS[kind]()

        return type(f"Hooked{base.__name__}", (base,), {hook: call, "abstract": True})

    for hook in ("before_start", "on_success", "on_failure", "after_return"):
        fails = hook == "on_failure"

        @app.task(name=f"failing.{hook}", shared=False, bind=True, base=hooked(app.Task, hook))
        def plain(self: Any, kind: str, fails: bool = fails) -> None:
            traces.ran(self.request.id)
            if fails:
                raise ValueError("the hook comes next")

        @app.task(name=f"failing.batch_{hook}", shared=False, base=hooked(BatchTask, hook))
        def batch(batch: Batch[str], fails: bool = fails) -> None:
            for item in batch:
                traces.ran(item.id)
                if fails:
                    item.fail(ValueError("the hook comes next"))


def insert() -> None:
    """What the sink does while it is away."""
    raise ConnectionError("the sink is away")


def _add_heavy(app: Celery) -> None:
    @app.task(name="failing.heavy", shared=False, ignore_result=True)
    def heavy(number: int) -> None:
        """Fail, holding half a megabyte."""
        rows = [str(number)] * 50_000
        insert()
        rows.clear()

    @app.task(name="failing.fine", shared=False, ignore_result=True)
    def fine(number: int) -> None:
        pass


def _add_heavy_batches(app: Celery) -> None:
    options = {"base": BatchTask, "max_size": 500, "ignore_result": True, "shared": False}

    @app.task(name="failing.heavy_batch", **options)
    def heavy_batch(batch: Batch[int]) -> None:
        """Fail each item by an error of its own."""
        for item in batch:
            try:
                insert()
            except ConnectionError as error:
                item.fail(error)

    @app.task(name="failing.shared_batch", **options)
    def shared_batch(batch: Batch[int]) -> None:
        """Fail all items by one error."""
        rows = [item.value for item in batch] * 1_000
        try:
            insert()
        except ConnectionError as error:
            for item in batch:
                item.fail(error)
        rows.clear()

    @app.task(name="failing.fine_batch", **options)
    def fine_batch(batch: Batch[int]) -> None:
        pass


def _watch(traces: Traces) -> None:
    def failed(task_id: str = "", **_: Any) -> None:
        traces.client.hincrby("failure signals", task_id, 1)

    def after(task_id: str = "", **_: Any) -> None:
        traces.client.hincrby("postrun signals", task_id, 1)

    task_failure.connect(failed, weak=False, dispatch_uid="failing")
    task_postrun.connect(after, weak=False, dispatch_uid="failing")


if broker_url := os.environ.get("CELERIAC_TEST_BROKER"):
    app = create(broker_url)
