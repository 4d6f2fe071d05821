"""What has ended on its way to the server, by calls of several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from routing.message.evidence import Evidence
from routing.redis.commands import Commands
from routing.transport.allowances import Allowances, Consumed
from routing.transport.carrier import Carrier
from routing.transport.channel import EngineMixin
from routing.transport.inbox import Inbox
from tests.apps.basic import close, create
from tests.support.broker import Broker
from tests.support.wait import eventually

SECONDS = 10


class Gate:
    """Holds calls up on their way to the server until it is opened."""

    def __init__(self) -> None:
        self.reached, self._is_open = threading.Event(), threading.Event()

    def close(self, patch: pytest.MonkeyPatch) -> None:
        """Hold up the next calls."""
        exchange = Commands.exchange

        def held_up(commands: Commands, *args: Any) -> Any:
            self.reached.set()
            assert self._is_open.wait(SECONDS)
            return exchange(commands, *args)

        patch.setattr(Commands, "exchange", held_up)

    def open(self) -> None:
        """Let them go on."""
        self._is_open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def channel(broker_url: str) -> Iterator[EngineMixin]:
    """A channel that holds a message, and settles as where somebody consumes."""
    app: Celery = create(broker_url)
    app.send_task("basic.add", (1, 1), queue="default")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        assert channel.basic_get("default") is not None
        channel.settler.is_prompt = False
        channel.settler._later.within(3600)  # in an event loop that is busy
        yield channel
    close(app)


def held_tag(channel: EngineMixin) -> str:
    """Return the tag of what it holds."""
    ((tag, _),) = channel.link.holdings.leases()
    return tag


@pytest.mark.parametrize("who", ["another thread of the channel", "the thread that renews"])
def test_an_early_ack_that_another_thread_carries_is_waited_for(
    channel: EngineMixin, broker: Broker, monkeypatch: pytest.MonkeyPatch, gate: Gate, who: str
) -> None:
    settler, is_done = channel.settler, threading.Event()

    def end_early() -> None:
        settler.ended(at_once=True)
        is_done.set()

    gate.close(monkeypatch)
    channel.link.holdings.end(held_tag(channel), "started")
    is_own = who == "another thread of the channel"
    threading.Thread(target=settler.flush if is_own else Carrier(channel.link).carry_all).start()
    assert gate.reached.wait(SECONDS)
    threading.Thread(target=end_early).start()
    assert not is_done.wait(0.1)
    assert broker.unacked("default") == 1
    gate.open()
    assert is_done.wait(SECONDS)
    assert broker.unacked("default") == 0


def test_what_a_call_of_its_own_carries_counts_until_that_has_arrived(
    channel: EngineMixin, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """A fetch could overtake it, and more than the prefetch would be unacknowledged."""
    holdings, told = channel.link.holdings, list[str]()
    consumed = Consumed(lambda: ["default"])
    consumed.add("a consumer", "default")
    allowances = Allowances(consumed, holdings, Inbox())
    (full,) = allowances.all()
    holdings.settlers.await_room["test"] = told.append
    gate.close(monkeypatch)
    holdings.end(held_tag(channel), "done")
    (free,) = allowances.all()
    assert free.credit == full.credit + 1, "an exchange would carry it along"
    told.clear()
    threading.Thread(target=Carrier(channel.link).carry_all).start()
    assert gate.reached.wait(SECONDS)
    assert allowances.all()[0].credit == full.credit
    assert not told
    gate.open()
    assert eventually(lambda: told) == ["default"]
    assert allowances.all()[0].credit == free.credit


def test_what_the_renewing_thread_carries_has_arrived_when_nobody_renews_any_more(
    channel: EngineMixin, broker: Broker, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    is_done = threading.Event()

    def dismiss() -> None:
        channel.link.holdings.dismiss()
        is_done.set()

    gate.close(monkeypatch)
    channel.link.holdings.end(held_tag(channel), "done")
    assert gate.reached.wait(SECONDS), "the thread that renews has seen it"
    threading.Thread(target=dismiss).start()
    assert not is_done.wait(0.1)
    gate.open()
    assert is_done.wait(SECONDS)
    assert broker.unacked("default") == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_what_a_call_that_was_interrupted_has_carried_is_kept(
    channel: EngineMixin, broker: Broker, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def interrupted(*args: Any) -> Any:
        raise error

    holdings, tag = channel.link.holdings, held_tag(channel)
    holdings.dismiss()  # it would carry it, too
    with monkeypatch.context() as patch:
        patch.setattr(Commands, "exchange", interrupted)
        patch.setattr(Commands, "requeue", interrupted)
        holdings.end(tag, "done")
        with pytest.raises(error):
            Carrier(channel.link).carry_all()
        assert holdings.outbox.tags() == [tag]
        assert not holdings.outbox.is_carried
    Carrier(channel.link).carry_all()
    assert broker.holds_nothing()


def test_what_a_thread_that_stands_still_has_taken_is_carried_by_another(
    channel: EngineMixin, broker: Broker, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """A greenlet may have taken it, and then another one computes."""
    holdings = channel.link.holdings
    tag = held_tag(channel)
    holdings.dismiss()
    holdings.end(tag, "done")
    with monkeypatch.context() as patch:
        gate.close(patch)
        thread = threading.Thread(target=Carrier(channel.link).carry_all)
        thread.start()
        assert gate.reached.wait(SECONDS)
    assert holdings.outbox.waits_seconds > 0
    Carrier(channel.link).carry_again(3600)
    assert broker.unacked("default") == 1, "it may be on its way"
    Carrier(channel.link).carry_again(0)
    assert broker.holds_nothing()
    assert not holdings.outbox.is_carried
    gate.open()
    thread.join()
    assert broker.ledger("default")["done"] == 1


@pytest.mark.parametrize("how", ["end", "bury", "requeue", "requeue_all"])
def test_credit_is_free_when_a_fetch_can_no_longer_overtake_the_ending(
    channel: EngineMixin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    holdings, tag = channel.link.holdings, held_tag(channel)
    consumed = Consumed(lambda: ["default"])
    consumed.add("a consumer", "default")
    allowances = Allowances(consumed, holdings, Inbox())
    (full,) = allowances.all()
    seen = []
    for name in ("add_endings", "add_burial", "add_return"):
        add = getattr(holdings.outbox, name)

        def look(*args: Any, add: Any = add) -> None:
            seen.append(allowances.all() == [full])
            add(*args)

        monkeypatch.setattr(holdings.outbox, name, look)
    holdings.dismiss()
    match how:
        case "end":
            holdings.end(tag, "done")
        case "bury":
            holdings.bury(tag, Evidence(reason="rejected"))
        case "requeue":
            holdings.requeue(tag)
        case _:
            holdings.requeue_all()
    assert seen == [True]
    # An exchange carries endings along; the others have calls of their own.
    free = full.credit + 1
    assert allowances.all()[0].credit == (free if how == "end" else full.credit)
    Carrier(channel.link).carry_all()
    assert allowances.all()[0].credit == free
