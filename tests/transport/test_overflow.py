"""What a producer sees of a full queue, on a real server."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chord, group

from routing import Dropped, MessageTooLarge, QueueFull, install
from routing.message.eta import Delay
from routing.redis.values import Pushed
from routing.transport import runtime
from routing.transport.claim import KEPT_MS, PAUSE_MS
from routing.transport.gathering import Destination
from routing.transport.overflow import retry_after_seconds
from routing.transport.room_wait import RoomWait
from tests.support.apps import AppFactory
from tests.support.broker import Broker
from tests.support.messages import ids_of, task_message
from tests.support.wait import eventually

TABLE: dict[str, Any] = {
    "queues": {
        "main": {},
        "small": {"max_length": 3},
        "bytes": {"max_bytes": 3_000},
        "short": {"max_message_bytes": 2_000},
        "newest": {"max_length": 3, "overflow": "drop_oldest"},
        "first": {"max_length": 3, "overflow": "drop_newest"},
        "loud": {"max_length": 1, "overflow": "drop_newest"},
        "quiet": {"max_length": 1, "overflow": "drop_newest", "log_drops": False},
        "waits": {"max_length": 3, "overflow": "block", "block_timeout": 0.05},
        "patient": {"max_length": 3, "overflow": "block"},
        "heavy": {"max_bytes": 3_000, "overflow": "block"},
        "later": {"max_delayed": 3, "overflow": "block"},
    },
}


@pytest.fixture
def app(make_app: AppFactory, broker: Broker) -> Celery:
    app = make_app(broker.url, result_backend="cache+memory://")
    install(app, TABLE)

    @app.task(name="noop", shared=False)
    def noop(row: Any = None) -> None: ...

    return app


def send(app: Celery, queue: str, count: int = 1, row: Any = None) -> None:
    for _ in range(count):
        app.tasks["noop"].apply_async((row,), queue=queue, ignore_result=True)


def members(app: Celery, **queues: int) -> list[Any]:
    noop = app.tasks["noop"]
    return [noop.si().set(queue=queue) for queue, count in queues.items() for _ in range(count)]


# -- refusals --------------------------------------------------------------------------------------


def test_a_queue_full_of_bytes_says_so(app: Celery) -> None:
    with pytest.raises(QueueFull, match=r"of at most 3000 bytes wait.* raise max_bytes") as caught:
        send(app, "bytes", 4)
    assert caught.value.unit == "bytes"
    assert 0 < caught.value.length <= caught.value.limit == 3_000


@pytest.mark.parametrize("queue", ["short", "bytes"])
def test_a_message_that_is_too_large_is_refused_for_good(
    app: Celery, broker: Broker, queue: str
) -> None:
    with pytest.raises(MessageTooLarge, match="send a reference to the data") as caught:
        send(app, queue, row="x" * 3_000)
    assert caught.value.size_bytes > caught.value.limit_bytes
    assert broker.length(queue) == 0


def test_receipts_tell_full_from_too_large_and_invalid(app: Celery, broker: Broker) -> None:
    noop = app.tasks["noop"]
    receipts = noop.delay_many([1, "x" * 3_000, object(), 2], queue="short")
    assert [receipt.reason for receipt in receipts] == [None, "too_large", "invalid", None]
    assert broker.length("short") == 2
    assert [r.reason for r in noop.delay_many(range(4), queue="small")] == [None] * 3 + ["full"]
    receipts = noop.delay_many(["x" * 3_000], queue="bytes")
    assert (receipts[0].reason, receipts.accepted) == ("too_large", 0)


def test_one_and_many_overflow_alike(app: Celery, broker: Broker) -> None:
    for queue in ("newest", "first"):
        send(app, queue, 5)
        assert app.tasks["noop"].delay_many(range(5), queue=queue).accepted == 5
        assert broker.ledger(queue) == {"accepted": 10, "dropped": 7}


def test_drops_are_logged_unless_that_is_off(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    send(app, "quiet", 3)
    assert "dropped" not in caplog.text
    send(app, "loud", 2)
    assert "queue 'loud' is full: 1 message dropped (overflow = drop_newest)" in caplog.text


def test_retry_after_follows_the_pace_of_the_queue() -> None:
    assert retry_after_seconds(Pushed(0, 100, 100, age_ms=10_000), 10) == 1.0
    assert retry_after_seconds(Pushed(0, 100, 100, age_ms=1), 1) == 0.1
    assert retry_after_seconds(Pushed(0, 1, 1, age_ms=10**9), 5) == 60
    assert retry_after_seconds(Pushed(0, 0, 1), 5) == 1.0


def test_the_error_of_a_dropped_task_survives_the_result_backend(app: Celery) -> None:
    app.backend.mark_as_failure("an-id", Dropped("newest", "drop_oldest"))
    with pytest.raises(Dropped, match="queue 'newest' was full") as caught:
        app.AsyncResult("an-id").get(timeout=5)
    assert (caught.value.queue, caught.value.policy) == ("newest", "drop_oldest")


# -- waiting for room ------------------------------------------------------------------------------


def test_a_blocked_producer_gives_up_after_its_timeout(app: Celery, broker: Broker) -> None:
    send(app, "waits", 3)
    with pytest.raises(QueueFull) as caught:
        send(app, "waits")
    assert (caught.value.length, caught.value.limit) == (3, 3)
    assert broker.ledger("waits") == {"accepted": 3, "refused": 1}
    receipts = app.tasks["noop"].delay_many(range(2), queue="waits")
    assert [receipt.reason for receipt in receipts] == ["full", "full"]


def test_a_blocked_producer_goes_on_when_there_is_room(app: Celery, broker: Broker) -> None:
    send(app, "patient", 3)
    producer = threading.Thread(target=send, args=(app, "patient", 1))
    producer.start()
    broker.client.rpop("patient")
    producer.join(10)
    assert not producer.is_alive()
    assert broker.ledger("patient") == {"accepted": 4}


def test_many_messages_go_in_as_fast_as_others_leave(app: Celery, broker: Broker) -> None:
    receipts: list[Any] = []
    noop = app.tasks["noop"]
    producer = threading.Thread(
        target=lambda: receipts.append(noop.delay_many(range(40), queue="patient"))
    )
    producer.start()
    taken: list[bytes] = []
    while len(taken) < 40:
        assert broker.length("patient") <= 3
        taken += eventually(lambda: broker.client.rpop("patient", 2))
    producer.join(10)
    assert receipts[0].accepted == 40
    assert broker.ledger("patient") == {"accepted": 40}


def test_a_lost_connection_repeats_nothing_that_is_in_the_queue(
    app: Celery, broker: Broker
) -> None:
    noop = app.tasks["noop"]
    producer = threading.Thread(target=lambda: noop.delay_many(range(10), queue="patient"))
    producer.start()
    eventually(lambda: broker.length("patient") == 3)
    broker.client.client_kill_filter(_type="normal", skipme=True)
    for _ in range(10):
        eventually(lambda: broker.client.rpop("patient"))
    producer.join(10)
    assert broker.ledger("patient") == {"accepted": 10}
    assert broker.length("patient") == 0


def test_a_workers_own_process_never_waits(app: Celery, broker: Broker) -> None:
    here = runtime.lookup(app.amqp_cls.runtime_name)
    here.is_worker = True
    try:
        send(app, "patient", 3)
        with pytest.raises(QueueFull):
            send(app, "patient")
    finally:
        here.is_worker = False


def test_patience_ends() -> None:
    patience = RoomWait(0.01)
    assert patience.wait()
    while patience.wait():
        pass
    assert not RoomWait(0).wait()


# -- groups whole or not at all --------------------------------------------------------------------


def test_a_group_is_published_whole_or_not_at_all(app: Celery, broker: Broker) -> None:
    group(members(app, small=2)).apply_async()
    with pytest.raises(QueueFull):
        group(members(app, small=2)).apply_async()
    assert broker.ledger("small") == {"accepted": 2, "refused": 2}
    group(members(app, small=1)).apply_async()
    assert broker.length("small") == 3


@pytest.mark.parametrize(
    ("queue", "shares"),
    [
        ("patient", {"patient": 3}),
        ("patient", {"patient": 3, "main": 1}),
        ("heavy", {"heavy": 3}),
        ("later", {"later": 3}),
    ],
    ids=["one queue", "two queues", "bytes", "delayed"],
)
def test_a_group_gets_in_though_single_messages_take_each_place_that_comes_free(
    app: Celery, broker: Broker, queue: str, shares: dict[str, int]
) -> None:
    is_delayed = queue == "later"
    names = ("delayed", "delayed_messages") if is_delayed else ()
    delayed, texts = (broker.key(f"celeriac:{name}:{queue}") for name in names or ("", ""))

    def free_a_place() -> None:
        if is_delayed:
            ((member, _),) = broker.client.zpopmin(delayed)
            broker.client.hdel(texts, member)
            return
        text = broker.client.rpop(broker.key(queue))
        broker.client.hincrby(broker.key(f"celeriac:ledger:{queue}"), "bytes", -len(text))

    with app.connection_for_write() as connection:
        channel = connection.default_channel
        overflow = channel.overflow(Destination(queue=queue, delayed=is_delayed))
        text = task_message("noop", (None,), queue=queue)
        far = datetime.now(UTC) + timedelta(hours=1)
        single: Any = Delay(far, "single", text) if is_delayed else text
        waiting = 0
        while overflow.push_once([single]).accepted:
            waiting += 1
        options = {"countdown": 3600} if is_delayed else {}
        sending = threading.Thread(
            target=lambda: group(members(app, **shares)).apply_async(**options), daemon=True
        )
        sending.start()
        kind = "claim_delayed" if is_delayed else "claim"
        eventually(lambda: broker.client.exists(broker.key(f"celeriac:{kind}:{queue}")))
        taken = 0
        for _ in range(waiting):
            free_a_place()
            taken += overflow.push_once([single]).accepted
        sending.join(20)
        assert not sending.is_alive(), "it waits still"
        assert taken <= 1, "each place went to somebody else"


def test_after_a_group_single_messages_have_their_turn(app: Celery, broker: Broker) -> None:
    key, payloads = broker.key("celeriac:claim:patient"), ["{}", "{}"]
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        overflow = channel.overflow(Destination(queue="patient"))
        first, second = overflow.claim(payloads), overflow.claim(payloads)
        first.renew()
        second.renew()
        assert overflow.push_once(["{}", "{}"]).accepted == 1
        assert overflow.push_once(payloads, "whole", second.who).accepted == 0
        assert overflow.push_once(payloads, "whole", first.who).accepted == 2
        first.end()
        broker.client.ltrim(broker.key("patient"), 0, 0)
        second.renew()
        assert overflow.push_once(["{}"]).accepted == 1, "nothing is kept for the next group yet"
        assert 0 < broker.client.pttl(key) <= PAUSE_MS
        eventually(lambda: not broker.client.exists(key))
        second.renew()
        assert overflow.push_once(["{}"]).accepted == 0
        assert 0 < broker.client.pttl(key) <= KEPT_MS, "who waits may die"


def test_a_group_over_several_queues_is_published_whole_or_not_at_all(
    app: Celery, broker: Broker
) -> None:
    with pytest.raises(QueueFull, match="'small'"):
        group(members(app, main=2, small=4)).apply_async()
    assert (broker.length("main"), broker.length("small")) == (0, 0)
    group(members(app, main=2, small=3)).apply_async()
    assert (broker.length("main"), broker.length("small")) == (2, 3)
    assert broker.ledger("small") == {"accepted": 3, "refused": 4}


def test_a_group_that_never_fits_is_not_waited_for(app: Celery, broker: Broker) -> None:
    heavy = [app.tasks["noop"].si("x" * 500).set(queue="heavy") for _ in range(5)]
    with pytest.raises(QueueFull, match="bytes wait"):
        group(heavy).apply_async()
    with pytest.raises(QueueFull, match="'patient'"):
        group(members(app, patient=4)).apply_async()
    assert (broker.length("heavy"), broker.length("patient")) == (0, 0)


def test_priorities_of_one_queue_share_its_room(app: Celery, broker: Broker) -> None:
    noop = app.tasks["noop"]
    mixed = [noop.si().set(queue="small", priority=p) for p in (0, 3, 6, 9)]
    with pytest.raises(QueueFull):
        group(mixed).apply_async()
    assert broker.length("small") == 0
    group(mixed[:3]).apply_async()
    assert broker.length("small") == 3


def test_a_chord_whose_header_is_refused_leaves_nothing(app: Celery, broker: Broker) -> None:
    with pytest.raises(QueueFull):
        chord(members(app, main=1, small=4))(app.tasks["noop"].si())
    assert (broker.length("main"), broker.length("small")) == (0, 0)
    chord(members(app, main=1, small=3))(app.tasks["noop"].si())
    assert (broker.length("main"), broker.length("small")) == (1, 3)


def test_a_group_with_a_message_that_is_too_large_leaves_nothing(
    app: Celery, broker: Broker
) -> None:
    big = app.tasks["noop"].si("x" * 3_000).set(queue="short")
    with pytest.raises(MessageTooLarge):
        group([*members(app, main=2), big]).apply_async()
    assert broker.length("main") == 0


def test_a_group_is_dropped_whole_by_a_queue_that_drops_what_is_new(
    app: Celery, broker: Broker
) -> None:
    group(members(app, first=2)).apply_async()
    group(members(app, main=1, first=2)).apply_async()
    assert broker.ledger("first") == {"accepted": 4, "dropped": 2}
    assert (broker.length("first"), broker.length("main")) == (2, 1)


def test_a_group_waits_for_room_for_all_of_it(app: Celery, broker: Broker) -> None:
    send(app, "patient", 2)
    producer = threading.Thread(target=lambda: group(members(app, patient=2)).apply_async())
    producer.start()
    broker.client.rpop("patient")
    producer.join(10)
    assert not producer.is_alive()
    assert broker.length("patient") == 3
    for queues in ({"patient": 4}, {"patient": 4, "main": 1}):
        with pytest.raises(QueueFull):
            group(members(app, **queues)).apply_async()


def test_members_arrive_in_their_order(app: Celery, broker: Broker) -> None:
    result = group(members(app, main=5)).apply_async()
    messages = ids_of(broker.payloads("main"))
    assert messages == [member.id for member in result.results]


def test_apps_without_bounds_are_left_alone(make_app: AppFactory, broker: Broker) -> None:
    app = make_app(broker.url)

    @app.task(name="noop", shared=False)
    def noop() -> None: ...

    group(noop.si().set(queue="any") for _ in range(3)).apply_async()
    assert broker.length("any") == 3
