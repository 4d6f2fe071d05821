from __future__ import annotations

from types import SimpleNamespace

from routing.maintenance.ageing import AgeDeadLetters
from routing.message.evidence import Evidence
from routing.transport.gathering import Destination
from tests.apps.basic import TABLE, close, create
from tests.support.broker import Broker
from tests.support.messages import numbered
from tests.support.wait import eventually


def test_a_worker_drops_dead_letters_that_are_too_old_in_every_queue(
    broker: Broker, broker_url: str
) -> None:
    queues = {"default": {"max_dead_age": 0.001}, "low": {}, "high": {"max_dead_age": 0.001}}
    app = create(broker_url, table={**TABLE, "queues": {**TABLE["queues"], **queues}})
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for queue in queues:
            channel.overflow(Destination(queue=queue)).push(numbered(2, queue=queue))
            while message := channel.basic_get(queue):
                channel.link.holdings.bury(message.delivery_tag, Evidence(reason="failed"))
        job = AgeDeadLetters(SimpleNamespace(app=app))

        def aged() -> bool:
            job.run(channel)
            return broker.length("default.dead") == broker.length("high.dead") == 0

        eventually(aged)
    assert broker.length("low.dead") == 2
    assert broker.ledger("default")["dead_trimmed"] + broker.length("default.dead") == 2
    close(app)
