"""What aio-pika cannot decode stops neither the bridge nor other records."""

from __future__ import annotations

import datetime as dt
import struct
from typing import Any

import pytest
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from tests.bridges.amqp_side import Hands, amqp_bridge, service_side
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened
from tests.support import until

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ


UNDECODABLE: dict[str, tuple[str, dict[str, Any], bytes, bytes]] = {
    "routing key": ("orders.ZZ", {}, b"ZZ", b"\xff\xfe"),
    "message id": ("orders.ann", {"message_id": "ZZ"}, b"ZZ", b"\xff\xfe"),
    "name of a header": ("orders.ann", {"headers": {"ZZ": "1"}}, b"ZZ", b"\xff\xfe"),
    "value of a header": ("orders.ann", {"headers": {"a": "ZZ"}}, b"ZZ", b"\xff\xfe"),
    "timestamp in nanoseconds": (
        "orders.ann",
        {"timestamp": dt.datetime.fromtimestamp(1_800_000_000, dt.UTC)},
        struct.pack(">Q", 1_800_000_000),
        struct.pack(">Q", 1_800_000_000 * 10**9),
    ),
}


async def test_a_message_that_cannot_be_decoded_stops_nothing(rabbit: RabbitServer) -> None:
    """aio-pika gave up each connection on which RabbitMQ delivered it, for ever."""
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        pika = await service.connection.channel(publisher_confirms=False)
        channel: Any = await pika.get_underlay_channel()
        for what, (key, properties, before, after) in UNDECODABLE.items():
            frames = message(channel.number, service.names.recv, key, properties, what)
            assert before in frames
            frames = frames.replace(before, after)
            await channel.write_queue.put(ChannelFrame(payload=frames, should_close=False))
        await channel.basic_publish(b"last", exchange=service.names.recv, routing_key="orders.ann")
        hands = Hands(bus, acks=False)
        await until(lambda: "last" in hands.payloads)
        found = {record.payload.decode(): record for record in hands.records}
        assert list(found) == [*UNDECODABLE, "last"]
        assert found["routing key"].key == "orders.\\xff\\xfe"  # no inbox: it is set aside
        assert found["name of a header"].key == "orders.ann (its headers cannot be decoded)"
        for what in ("message id", "value of a header", "timestamp in nanoseconds"):
            assert found[what].key == "orders.ann"
        await bus.set_aside(found["routing key"], "why")
        assert (await service.dead()).headers["Ws-Dead-Reason"] == "why"


def message(number: int, exchange: str, key: str, properties: dict[str, Any], text: str) -> bytes:
    """Return the frames that publish a message on the channel with a *number*."""
    body = text.encode()
    frames: list[Any] = [
        Basic.Publish(exchange=exchange, routing_key=key),
        ContentHeader(body_size=len(body), properties=Basic.Properties(**properties)),
        ContentBody(body),
    ]
    return ChannelFrame.marshall(channel_number=number, frames=frames).payload
