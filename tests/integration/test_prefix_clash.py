"""Two installations on one account whose prefixes make the same names of streams."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.faults.traffic import broker_at
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerError, BrokerMisconfigured
from wsgateway.layer import NatsChannelLayer
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")
PAIRS = [("shop", "SHOP"), ("a.b", "a_b"), ("a-b", "a.b")]


@pytest.fixture(params=PAIRS, ids=str)
async def clash(request: pytest.FixtureRequest, nats_settings: Any, prefix: str) -> tuple[str, str]:
    """Two prefixes; the first one has its streams, with something in each."""
    first, second = (f"{prefix}{name}" for name in request.param)
    nats_settings.WSGATEWAY_PREFIX = first
    broker = broker_from_settings(wsgateway_settings)
    await broker.set_up()
    await broker.open()
    await broker.wait_ready()
    await broker.publish(ANN, b"x")
    await broker.offer(ANN, Frame.of("x"), "x")
    await broker.save_cursor(ANN, "phone", 1)
    layer = NatsChannelLayer(capacity=7)
    await layer.send("normal", {"type": "small"})
    await layer.send("normal", {"type": "large", "data": os.urandom(2_000_000)})
    await layer.close()
    await broker.close()
    nats_settings.WSGATEWAY_PREFIX = second
    return first, second


async def streams(broker: NatsBroker, first: str) -> dict[str, Any]:
    """Return each stream of the first installation: what it is, and what it holds."""
    every: list[Any] = []
    while (
        page := (await broker.jetstream.api("STREAM.LIST", {"offset": len(every)}))["streams"] or ()
    ):
        every += page
    upper = broker.subjects.upper
    found = [s for s in every if upper in s["config"]["name"]]
    return {
        s["config"]["name"]: (s["created"], json.dumps(s["config"]), s["state"]["messages"])
        for s in found
    }


@pytest.mark.parametrize("has_metadata", [True, False])
async def test_second_installation_touches_nothing(
    clash: tuple[str, str], nats_server: EmbeddedServer, has_metadata: bool
) -> None:
    """`setup_streams` of the prefix SHOP took the streams of the prefix shop over."""
    first, second = clash
    async with broker_at([nats_server.url], first) as plain:
        await plain.wait_ready()
        if not has_metadata:  # as an earlier version made them
            for name in await streams(plain, first):
                config = (await plain.jetstream.api(f"STREAM.INFO.{name}"))["config"]
                config["metadata"] = {}
                await plain.jetstream.api(f"STREAM.UPDATE.{name}", config)
        before = await streams(plain, first)
        assert len(before) >= 8
        broker = broker_from_settings(wsgateway_settings)
        with pytest.raises(BrokerMisconfigured, match="belongs to another installation") as error:
            await broker.set_up()
        assert repr(second) in str(error.value)
        await broker.open()
        with pytest.raises(BrokerMisconfigured, match="choose a WSGATEWAY_PREFIX"):
            await broker.wait_ready()
        await broker.close()
        layer = NatsChannelLayer(capacity=9)
        for message in ({"type": "small"}, {"type": "large", "data": os.urandom(2_000_000)}):
            with pytest.raises(BrokerError, match="belongs to another installation"):
                await layer.send("normal", message)
        await layer.flush()
        await layer.close()
        assert await streams(plain, first) == before


async def test_earlier_streams_are_kept_and_marked(
    nats_settings: Any, nats_server: EmbeddedServer, prefix: str
) -> None:
    broker = broker_from_settings(wsgateway_settings)
    await broker.set_up()
    names = [spec.name for spec in broker.streams.specs]
    for name in names:
        config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
        config["metadata"] = {"team": "shop"}
        await broker.jetstream.api(f"STREAM.UPDATE.{name}", config)
    await broker.open()
    await broker.wait_ready()
    lines = await broker.set_up()
    assert all(line.endswith("changed metadata") for line in lines), lines
    for name in names:
        config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
        assert config["metadata"]["wsgateway.prefix"] == prefix
        assert config["metadata"]["team"] == "shop"
    await broker.close()
