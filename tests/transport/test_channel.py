"""The engine's channel as kombu and Celery use it, without a worker."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from kombu import Connection, Consumer, Message, Producer, Queue
from kombu.asynchronous import Hub

from routing import BrokerUnreachable, QueueFull
from routing.redis.faults import Fault, fault_of
from tests.apps.basic import TABLE, close, create
from tests.support.broker import Broker
from tests.support.messages import ids_of, numbered
from tests.support.servers import Server, free_port
from tests.support.wait import eventually


@pytest.fixture(params=["", "shop:"], ids=["plain", "key prefix"])
def broker(request: pytest.FixtureRequest, valkey: Server) -> Iterator[Broker]:
    """An empty broker database, with and without a key prefix."""
    with Broker(valkey.fresh_url(), prefix=request.param) as broker:
        yield broker


@pytest.fixture
def app(broker: Broker) -> Iterator[Celery]:
    """The basic app on it."""
    options = {"global_keyprefix": broker.prefix} if broker.prefix else {}
    app = create(broker.url, options=options)
    yield app
    close(app)


def test_basic_get_records_what_it_takes(app: Celery, broker: Broker) -> None:
    with app.connection_for_read() as connection:
        app.send_task("basic.add", (1, 1), task_id="an-id", queue="default")
        channel = connection.channel()
        message = channel.basic_get("default")
        assert message.headers["id"] == "an-id"
        assert broker.unacked("default") == 1
        message.reject(requeue=True)
        assert (broker.length("default"), broker.unacked()) == (1, 0)
        channel.basic_get("default").ack()
        assert (broker.length("default"), broker.unacked()) == (0, 0)
        assert channel.basic_get("default") is None


def test_a_message_got_is_kept_for_longer_than_a_lease(broker: Broker) -> None:
    options = {"global_keyprefix": broker.prefix} if broker.prefix else {}
    app = create(broker.url, options=options, table={**TABLE, "lease_seconds": 3})
    app.send_task("basic.add", (1, 1), queue="default")
    with app.connection_for_read() as connection:
        tag = connection.channel().basic_get("default").delivery_tag
        lease = broker.client.zscore(f"{broker.prefix}celeriac:leases", tag)
        eventually(lambda: broker.client.zscore(f"{broker.prefix}celeriac:leases", tag) > lease)
    close(app)


def test_a_message_got_and_left_goes_back_when_the_channel_closes(
    app: Celery, broker: Broker
) -> None:
    app.send_task("basic.add", (1, 1), task_id="an-id", queue="default")
    with app.connection_for_read() as connection:
        assert connection.channel().basic_get("default") is not None
        assert broker.unacked() == 1
    assert ids_of(broker.payloads("default")) == ["an-id"]
    assert broker.holds_nothing()


def test_a_message_that_nobody_can_take_in_comes_again_later_and_uncharged(
    app: Celery, broker: Broker
) -> None:
    tries: list[Message] = []

    def take(body: object, message: Message) -> None:
        tries.append(message)
        raise RuntimeError("a defect of the consumer")

    app.send_task("basic.add", (1, 1), task_id="an-id", queue="default")
    with app.connection_for_read() as connection:
        queues, callbacks = [Queue("default")], [take]
        channel = connection.channel()
        channel.link.holdings.durable = True  # as in a worker
        with Consumer(channel, queues, callbacks=callbacks, accept=["json"]):
            while len(tries) < 2:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
            eventually(lambda: len(broker.delayed("default")) == 1)
        channel.link.holdings.durable = False
    assert not broker.length("default.dead")
    assert broker.holds_nothing()
    assert broker.charges() == {}


def test_what_a_plain_consumer_raises_reaches_its_caller(app: Celery, broker: Broker) -> None:
    def take(body: object, message: Message) -> None:
        raise KeyError("a defect of the application")

    app.send_task("basic.add", (1, 1), queue="default")
    with (
        app.connection_for_read() as connection,
        Consumer(connection.channel(), [Queue("default")], callbacks=[take], accept=["json"]),
        pytest.raises(KeyError, match="a defect of the application"),
    ):
        connection.drain_events(timeout=5)
    assert broker.length("default") == 1
    assert broker.length("default.dead") == 0


def test_a_simple_queue_gives_and_takes(app: Celery, broker: Broker) -> None:
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue("simple")
        for number in range(3):
            simple.put({"n": number})
        taken = simple.get(timeout=5)
        assert taken.payload == {"n": 0}
        taken.ack()
        again = simple.get(timeout=5)
        again.requeue()
        rest = [simple.get(timeout=5) for _ in range(2)]
        # The next one had been fetched with it.
        assert [message.payload["n"] for message in rest] == [2, 1]
        for message in rest:
            message.ack()
        simple.close()
    assert broker.unacked() == 0


def test_a_plain_consumer_of_kombu_takes_acknowledges_and_gives_back(
    app: Celery, broker: Broker
) -> None:
    broker.client.lpush(broker.key("plain"), *numbered(3, queue="plain"))
    taken: list[Message] = []
    with (
        app.connection_for_read() as connection,
        connection.Consumer(Queue("plain"), on_message=taken.append, accept=["json"]),
    ):
        while len(taken) < 3:
            connection.drain_events(timeout=5)
        taken[0].ack()
        taken[1].reject(requeue=True)
        eventually(lambda: broker.unacked("plain") <= 2)
    assert sorted(ids_of(broker.payloads("plain"))) == ["2", "3"]
    assert broker.holds_nothing()


def test_a_full_queue_raises_at_delay_with_what_to_do(app: Celery) -> None:
    mark = app.tasks["basic.mark"]
    for n in range(3):
        mark.apply_async((str(n),), queue="small")
    with pytest.raises(QueueFull, match=r"'small' is full: 3 of at most 3") as caught:
        mark.apply_async(("4",), queue="small")
    assert (caught.value.queue, caught.value.length, caught.value.limit) == ("small", 3, 3)
    assert caught.value.retry_after > 0


def test_a_broker_that_cannot_be_reached_is_named_at_delay(broker_url: str) -> None:
    port = free_port()
    url = f"redis://:hidden@127.0.0.1:{port}/0"
    app = create(url, store=broker_url, task_publish_retry=False)
    with pytest.raises(BrokerUnreachable, match=str(port)) as caught:
        app.tasks["basic.mark"].delay("x")
    assert "hidden" not in str(caught.value)
    close(app)


def test_what_kombu_reconnects_to_declare_is_published_all_the_same(
    app: Celery, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare = Producer.maybe_declare

    def declare_on_a_new_connection(producer: Producer, entity: Any, **options: Any) -> Any:
        monkeypatch.undo()
        producer.connection.collect()
        producer.revive(producer.connection.default_channel)
        return declare(producer, entity, **options)

    monkeypatch.setattr(Producer, "maybe_declare", declare_on_a_new_connection)
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish({}, routing_key="plain", declare=[Queue("plain")], retry=True)
    assert broker.length("plain") == 1


def test_a_closed_channel_is_a_lost_connection_to_whoever_uses_it(app: Celery) -> None:
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.channel.close()
        with pytest.raises(redis.ConnectionError, match="closed") as caught:
            producer.publish({}, routing_key="plain")
    assert fault_of(caught.value) is Fault.LOST


def test_stock_connections_are_left_alone(broker_url: str) -> None:
    with Connection(broker_url) as connection:
        assert "celeriac" not in str(type(connection.transport).__module__)


def test_a_queue_without_acknowledgement_leaves_neither_records_nor_bells(
    app: Celery, broker: Broker
) -> None:
    taken: list[object] = []
    with app.connection_for_read() as connection:
        queue = Queue("replies", no_ack=True, durable=False, auto_delete=True)
        producer = connection.Producer()
        with connection.Consumer(queue, on_message=taken.append, no_ack=True):
            for number in range(3):
                producer.publish({"n": number}, routing_key="replies", declare=[queue])
            while len(taken) < 3:
                connection.drain_events(timeout=5)
    assert broker.holds_nothing()
    assert broker.names("celeriac:*") == set()


def test_one_channel_consumes_with_and_without_acknowledgement(app: Celery, broker: Broker) -> None:
    taken: list[Message] = []
    with app.connection_for_read() as connection:
        channel = connection.channel()
        replies, work = Queue("replies", no_ack=True), Queue("plain")
        with (
            Consumer(channel, replies, on_message=taken.append, no_ack=True),
            Consumer(channel, work, on_message=taken.append, accept=["json"]),
        ):
            producer = connection.Producer()
            producer.publish({}, routing_key="replies", declare=[replies])
            broker.client.lpush(broker.key("plain"), *numbered(1, queue="plain"))
            while len(taken) < 2:
                connection.drain_events(timeout=5)
            assert broker.unacked() == 1
            next(message for message in taken if message.headers.get("id")).ack()
    assert broker.holds_nothing()


def test_a_call_of_beat_follows_the_route_of_its_level(app: Celery, broker: Broker) -> None:
    scheduler = Scheduler(app, schedule={}, lazy=True)
    for options in ({"priority": "low"}, {"low_priority": True}, {"priority": "high"}, {}):
        entry = ScheduleEntry(
            name="tick", task="basic.where", schedule=schedule(1), options=options, app=app
        )
        scheduler.apply_async(entry, advance=False)
    lengths = {queue: broker.length(queue) for queue in ("low", "high", "default")}
    assert lengths == {"low": 2, "high": 1, "default": 1}
    scheduler.close()


def test_a_closed_channel_leaves_no_connection_behind(app: Celery, broker: Broker) -> None:
    def connections() -> int:
        return len(broker.client.client_list())

    before = connections()
    for _ in range(5):
        with (
            app.connection_for_read() as connection,
            connection.Consumer(Queue("plain")),
            pytest.raises(TimeoutError),
        ):
            connection.drain_events(timeout=0.1)
    eventually(lambda: connections() <= before + 1)


def test_a_closed_connection_leaves_no_timer_in_the_event_loop(app: Celery) -> None:
    hub = Hub()
    connection = app.connection_for_read()
    connection.transport.register_with_event_loop(connection.connection, hub)
    live = [entry for _, _, entry in hub.timer._queue if not entry.canceled]
    assert live
    connection.close()
    assert [entry for entry in live if not entry.canceled] == []
    hub.close()


def test_a_queue_of_the_table_does_not_expire_with_its_messages(
    app: Celery, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    expiring = {"x-expires": 60_000}
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        Queue("low", queue_arguments=expiring).bind(channel).declare()
        Producer(channel).publish({}, exchange="", routing_key="low")
    assert broker.client.pttl(broker.key("low")) == -1
    assert "queue 'low' is in the queue table: its x-expires is left out" in caplog.text


def test_a_queue_outside_of_the_table_expires_when_nothing_is_pushed(
    app: Celery, broker: Broker
) -> None:
    add = app.tasks["basic.add"]
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        queue = Queue("own", queue_arguments={"x-expires": 60_000}).bind(channel)
        queue.declare()
        ways = {
            "one": lambda: add.apply_async((1, 1), queue=queue, connection=connection),
            "urgent": lambda: add.apply_async(
                (1, 1), queue=queue, connection=connection, priority=9
            ),
            "many": lambda: add.apply_many([((1, 1), {})], queue=queue, connection=connection),
        }
        for name, send in ways.items():
            send()
            steps = [broker.key(f"own{step}") for step in ("", "\x06\x169")]
            ages = [broker.client.pttl(key) for key in steps if broker.client.exists(key)]
            assert ages, name
            assert all(0 < age <= 60_000 for age in ages), name
            for key in steps:
                broker.client.persist(key)


def test_deleting_a_queue_counts_what_it_held_of_all_priorities(
    app: Celery, broker: Broker
) -> None:
    for priority in (0, 3, 9):
        app.send_task("basic.add", (1, 1), queue="low", priority=priority)
    with app.connection_for_write() as connection:
        queue = app.amqp.queues["low"].bind(connection.default_channel)
        queue.declare()
        queue.delete()
        assert broker.length("low") == 0
        assert broker.ledger("low")["purged"] == 3
        queue.declare()
    app.send_task("basic.add", (1, 1), queue="low", priority=9)
    assert broker.length("low") == 1


def test_a_consumer_outside_of_a_worker_keeps_its_leases_too(broker: Broker) -> None:
    options = {"global_keyprefix": broker.prefix} if broker.prefix else {}
    app = create(broker.url, options=options, table={**TABLE, "lease_seconds": 3})
    app.send_task("basic.add", (1, 1), queue="default")
    taken: list[Message] = []
    with app.connection_for_read() as connection:
        channel = connection.channel()
        queue = Queue("default", routing_key="default")
        with Consumer(channel, [queue], on_message=taken.append, accept=["json"]):
            connection.drain_events(timeout=5)
        leases = channel.commands.keys.records()[2]
        tag = taken[0].delivery_tag
        expiry = broker.client.zscore(leases, tag)
        eventually(lambda: broker.client.zscore(leases, tag) > expiry)
        taken[0].ack()
        holdings = channel.link.holdings
    assert holdings.keeper is None
    assert broker.holds_nothing()
    close(app)


def test_what_is_held_belongs_to_one_database(valkey: Server) -> None:
    urls = [valkey.fresh_url() for _ in range(2)]
    app = create(urls[0])
    came: deque[Message] = deque()
    acknowledged: list[str] = []

    def drain(connection: Connection) -> None:
        """Take what comes, and acknowledge whatever has come, whichever database it is from."""
        while len(acknowledged) < 600:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            with suppress(IndexError):
                while message := came.popleft():
                    message.ack()
                    acknowledged.append(message.delivery_tag)

    with ExitStack() as stack:
        connections = [stack.enter_context(app.connection_for_read(url)) for url in urls]
        channels = [connection.channel() for connection in connections]
        for connection, channel in zip(connections, channels, strict=True):
            for number in range(300):
                app.send_task("basic.add", (number, 1), queue="default", connection=connection)
            queues = [Queue("default", routing_key="default")]
            stack.enter_context(Consumer(channel, queues, on_message=came.append, accept=["json"]))
        threads = [threading.Thread(target=drain, args=(one,)) for one in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert channels[0].link.holdings is not channels[1].link.holdings
    for url in urls:
        with Broker(url) as broker:
            assert broker.ledger("default") == {"accepted": 300, "unacked": 0, "done": 300}
            assert broker.holds_nothing()
    close(app)


def test_a_lost_channel_leaves_its_endings_to_no_other_database(valkey: Server) -> None:
    urls = [valkey.fresh_url() for _ in range(2)]
    app = create(urls[0])
    with app.connection_for_read(urls[0]) as one, app.connection_for_read(urls[1]) as two:
        app.send_task("basic.add", (1, 1), queue="default", connection=one)
        message = one.channel().basic_get("default")
        holdings = message.link.holdings
        holdings.durable = True  # as in a worker, whose work outlives its channel
        message.channel.close()
        two.channel().basic_get("default")
        message.ack()
        assert holdings.outbox.endings == 1, "nobody of this database could settle it"
        again = one.channel()
        again.fetcher.name  # noqa: B018 - it begins to settle
        again.settler.flush()
        assert holdings.outbox.endings == 0
        holdings.durable = False
        holdings.dismiss()
    with Broker(urls[0]) as broker:
        assert broker.ledger("default") == {"accepted": 1, "unacked": 0, "done": 1}
    close(app)


def test_a_message_of_protocol_1_waits_for_its_eta_at_the_broker(
    app: Celery, broker: Broker
) -> None:
    app.conf.task_protocol = 1
    app.send_task("basic.add", (1, 1), queue="default", countdown=3600)
    taken: list[Message] = []
    with app.connection_for_read() as connection:
        channel = connection.channel()
        queue = Queue("default", routing_key="default")
        with Consumer(channel, [queue], on_message=taken.append, accept=["json"]):
            while not broker.delayed("default"):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
        assert channel.link.holdings.credit.held("default") == 0
    assert taken == []
    assert broker.holds_nothing()


@pytest.mark.parametrize("how", ["qos", "consumer"])
def test_a_consumer_of_ones_own_holds_no_more_than_its_prefetch_count(
    app: Celery, broker: Broker, how: str
) -> None:
    for n in range(12):
        app.send_task("basic.add", (n, 1), queue=("default", "bulk")[n % 2])
    held: deque[Message] = deque()
    with app.connection_for_read() as connection:
        channel = connection.channel()
        queues = [app.amqp.queues["default"], app.amqp.queues["bulk"]]
        options = {"prefetch_count": 2} if how == "consumer" else {}
        consumer = Consumer(channel, queues, on_message=held.append, accept=["json"], **options)
        if how == "qos":
            consumer.qos(prefetch_count=2)
        with consumer:
            for done in range(12):
                while len(held) < min(2, 12 - done):
                    connection.drain_events(timeout=5)
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.01)
                assert len(held) == broker.unacked() == min(2, 12 - done)
                held.popleft().ack()
                channel.settler.settle_now()
        assert broker.holds_nothing()


def test_another_prefetch_count_takes_effect_within_a_look(app: Celery, broker: Broker) -> None:
    for n in range(12):
        app.send_task("basic.add", (n, 1), queue="default")
    held: list[Message] = []
    with app.connection_for_read() as connection:
        consumer = Consumer(
            connection.channel(),
            [app.amqp.queues["default"]],
            on_message=held.append,
            accept=["json"],
            prefetch_count=1,
        )
        with consumer:
            for count in (1, 5, 12):
                consumer.qos(prefetch_count=0 if count == 12 else count)
                while len(held) < count:
                    connection.drain_events(timeout=5)
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.01)
                assert len(held) == broker.unacked() == count


def test_channels_count_their_own_messages(app: Celery, broker: Broker) -> None:
    for n in range(12):
        app.send_task("basic.add", (n, 1), queue="default")
    queues = [app.amqp.queues["default"]]
    held: list[list[Message]] = [[], []]
    with app.connection_for_read() as connection, ExitStack() as stack:
        for mine in held:
            consumer = Consumer(
                connection.channel(),
                queues,
                on_message=mine.append,
                accept=["json"],
                prefetch_count=3,
                tag_prefix=f"tag{len(stack._exit_callbacks)}",
            )
            stack.enter_context(consumer)
            while len(mine) < 3:
                connection.drain_events(timeout=5)
        assert [len(mine) for mine in held] == [3, 3]
        assert broker.unacked() == 6
