from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from routing.worker.clerk import Clerk

APP = SimpleNamespace(_celeriac_waiting=object())


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_an_ending_raises_is_its_own_business(error: type[BaseException]) -> None:
    clerk = Clerk()
    made = threading.Event()

    def raises() -> None:
        raise error

    clerk.do(APP, raises)
    clerk.do(APP, made.set)
    assert made.wait(10)
    clerk.finish()
