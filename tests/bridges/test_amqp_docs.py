"""What docs/how-to/bridges.md shows of RabbitMQ, run as it stands there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.bridges.amqp_side import Hands, amqp_bridge
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.pages import DocumentPage
from tests.support import Process, running, site_env, until
from wsgateway.bridges.bus import Bus
from wsgateway.exceptions import BusMisconfigured

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ

PAGE = DocumentPage("how-to/bridges.md")


async def test_service_of_the_page_answers_once(rabbit: RabbitServer, tmp_path: Path) -> None:
    code = PAGE.code("aio_pika.connect_robust")
    rabbit.add_vhost("docs")
    url = rabbit.url(vhost="docs")
    bridge = amqp_bridge(rabbit, url=url, prefix="ws")
    async with opened(bridge) as bus:
        hands = Hands(bus)
        service = Process(
            [sys.executable, "-c", code], tmp_path / "log", site_env(RABBITMQ_URL=url)
        )
        with running(service):
            service.spawn()
            headers = {"Ws-Id": "1", "Ws-Sender": "orders.ann", "Ws-Request": "r7"}
            await until_taken(bus, b"2 pizzas", headers)
            await until(lambda: hands.records)
        [record] = hands.records
        assert (record.key, record.payload) == ("orders.ann", b"Got it: 2 pizzas")
        assert record.headers == {"Ws-Reply-To": "r7"}
        assert record.id is not None
        assert record.id.startswith("answer-1/")


async def until_taken(bus: Bus, payload: bytes, headers: dict[str, str]) -> None:
    """Produce it, as a bridge does: again and again until the service has bound its queue."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await bus.produce("orders", "ann", payload, headers)
            except BusMisconfigured:
                await asyncio.sleep(0.05)
