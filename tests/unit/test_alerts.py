"""What operators have to look at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from wsgateway.alerts import of_gateways, of_outbox, of_queues, of_streams, of_workers
from wsgateway.broker.operations import Queue, Stream
from wsgateway.presence import Gateways
from wsgateway.services.status import BridgeWork, Worker, Workers

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def queue(seconds: float = 0.0, **values: Any) -> Queue:
    """Return a queue whose oldest message waits for *seconds*."""
    if seconds:
        values = {"oldest": NOW - timedelta(seconds=seconds), "waiting": 1, **values}
    return Queue("orders", **values)


@pytest.mark.parametrize(
    ("state", "texts"),
    [
        (queue(), []),
        (queue(4), []),
        (queue(6), ["orders: 1 message waits and no worker takes any"]),
        (queue(6, waiting=1200), ["orders: 1,200 messages wait and no worker takes any"]),
        (queue(59, pulls=1), []),
        (queue(59, in_flight=1), []),
        (queue(200, pulls=1), ["orders: 1 message waits, the oldest for 3 min 20 s"]),
        (
            queue(6, paused=True, dead=1),
            [
                "orders is paused because its webhook answered 410; once that is mended, run "
                '"manage.py gateway resume orders"',
                "orders: 1 dead letter",
            ],
        ),
        (queue(dead=1), ["orders: 1 dead letter"]),
        (queue(dead=2), ["orders: 2 dead letters"]),
    ],
)
def test_queues(state: Queue, texts: list[str]) -> None:
    assert [alert.text for alert in of_queues([state], NOW)] == texts


@pytest.mark.parametrize(
    ("stream", "alerts"),
    [
        (Stream("S", "mail"), []),
        (Stream("S", "mail", bytes=79, max_bytes=100), []),
        (Stream("S", "mail", bytes=80, max_bytes=100), [("warning", "S is 80% full")]),
        (Stream("S", "mail", bytes=95, max_bytes=100), [("error", "S is 95% full")]),
        (Stream("S", "mail", last_error="no leader"), [("error", "S: no leader")]),
        (
            Stream("S", "mail", differences=("keeps 1 s", "has 1 replica")),
            [("warning", "S differs from the settings: keeps 1 s; has 1 replica")],
        ),
    ],
)
def test_streams(stream: Stream, alerts: list[tuple[str, str]]) -> None:
    assert [(alert.level, alert.text) for alert in of_streams([stream])] == alerts


@pytest.mark.parametrize(
    ("failed", "seconds", "texts"),
    [
        (0, None, []),
        (0, 59, []),
        (1, None, ["Outbox: 1 row could not be sent"]),
        (
            2,
            60,
            [
                "Outbox: 2 rows could not be sent",
                "Outbox: the oldest row has waited for 1 min; is a relay running?",
            ],
        ),
    ],
)
def test_outbox(failed: int, seconds: int | None, texts: list[str]) -> None:
    oldest = None if seconds is None else NOW - timedelta(seconds=seconds)
    assert [alert.text for alert in of_outbox(failed, oldest, NOW)] == texts


def test_who_does_not_answer_is_named() -> None:
    (alert,) = of_gateways(Gateways((), silent=("web-1",)))
    assert alert.text == "Gateway web-1 does not answer: frozen, or cut off from the broker"
    (alert,) = of_gateways(Gateways(()))
    assert alert.text == "No gateway is running"
    (alert,) = of_workers(Workers((), silent=("worker-1",)))
    assert alert.text == "Worker worker-1 does not answer: frozen, or cut off from the broker"


def test_bridge_without_its_bus() -> None:
    def worker(connected: bool, trouble: str = "", bus: str = "") -> Worker:
        bridge = BridgeWork(connected, 0, 0, 0, 0, 0, trouble, bus)
        return Worker("w", "1", "host", 1, NOW, {}, (), 0, {"warehouse": bridge})

    assert [*of_workers(Workers([worker(connected=True)], []))] == []
    [alert] = of_workers(Workers([worker(connected=False)], []))
    assert alert.text == "Bridge warehouse of worker w does not reach Kafka or RabbitMQ"
    [alert] = of_workers(Workers([worker(connected=False, bus="RabbitMQ at amqp://mq:5672")], []))
    assert alert.text == "Bridge warehouse of worker w does not reach RabbitMQ at amqp://mq:5672"
    [alert] = of_workers(Workers([worker(connected=True, trouble="no topic 'ws.recv'")], []))
    assert alert.text == "Bridge warehouse of worker w waits: no topic 'ws.recv'"
