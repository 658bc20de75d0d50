"""Which services exist: the streams say so, to every process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.faults.traffic import broker_at
from tests.support import Gateway, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox


async def test_process_that_declares_nothing_reads_the_streams(
    broker: NatsBroker, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with broker_at([nats_server.url], prefix) as other:
        assert await other.service_exists("orders")
        assert other.known_service("orders") is True
        assert not await other.service_exists("chat")
        assert other.known_service("chat") is False


async def test_new_service_is_heard_of_at_once(
    broker: NatsBroker, nats_settings: Any, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with broker_at([nats_server.url], prefix) as other:
        await other.wait_ready()
        assert not await other.service_exists("new")
        nats_settings.WSGATEWAY_SERVICES = ["new"]
        declaring = broker_from_settings(wsgateway_settings)
        await declaring.open()
        await declaring.wait_ready()
        await until(lambda: other.known_service("new") is not False, what="the broadcast")
        assert await other.service_exists("new")
        await declaring.close()


async def test_many_unknown_names_cost_one_look(
    broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens sockets for names that do not exist must not flood the broker."""
    asked: list[str] = []
    api = broker.jetstream.api

    async def counting(name: str, *args: Any) -> Any:
        asked.append(name)
        return await api(name, *args)

    monkeypatch.setattr(broker.jetstream, "api", counting)
    await broker.connection.confirm()  # its own word that it has made streams is back
    broker.services.invalidate()
    found = await asyncio.gather(*(broker.service_exists(f"chat {n}") for n in range(500)))
    assert not any(found)
    looks = asked.count("STREAM.NAMES")  # the broker may look after its streams at any time
    assert looks == 2  # at the queues, and at the topics


@pytest.mark.parametrize("protocol", [None, "wsgateway.v1"])
async def test_socket_for_an_unknown_service_hears_the_setting(
    gateway_factory: Callable[..., Gateway], protocol: str | None
) -> None:
    gateway = gateway_factory(DJANGO_SETTINGS_MODULE="tests.service_app.settings")
    options: dict[str, Any] = {"subprotocols": [protocol]} if protocol else {}
    async with gateway.connect("counted", "ann", **options) as socket:
        await socket.ping()
    async with gateway.connect("chat", "ann", **options) as socket:
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert socket.close_code == (4503 if protocol else 1008)
        assert socket.close_reason == "service 'chat' does not exist"
    assert "WSGATEWAY_SERVICES" in gateway.output
    name = "A" * 90
    async with gateway.connect(name, "ann", **options) as socket:
        await asyncio.wait_for(socket.wait_closed(), 10)
        assert socket.close_code == (4500 if protocol else 1008)
        assert "use a shorter one" in (socket.close_reason or "")


async def test_shared_stream_of_an_earlier_version_goes_on(
    nats_settings: Any, nats_server: EmbeddedServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A new version beside an old one: until `setup_streams` runs, they share WS_SEND."""
    ann = Inbox("orders", "ann")
    async with broker_at([nats_server.url], prefix) as old:
        await old.wait_ready()
        name = old.subjects.stream("send")
        config = {"name": name, "subjects": [f"{prefix}.send.*.*"], "retention": "workqueue"}
        await old.jetstream.api(f"STREAM.CREATE.{name}", {**config, "allow_direct": True})
        broker = broker_from_settings(wsgateway_settings)
        await broker.open()
        await broker.wait_ready()
        assert "setup_streams" in caplog.text
        assert await broker.services.queue("orders") == name
        await broker.offer(ann, Frame.of("x"), "x")
        assert (await old.jetstream.api(f"STREAM.INFO.{name}"))["state"]["messages"] == 1
        assert await old.service_exists("whatever")
        await broker.close()


def test_runservice_refuses_what_no_client_can_reach(nats_settings: Any) -> None:
    """Its worker waited for ever for a stream that nobody makes, without a word.

    Without a name, it said that no app has a service, when the setting listed none of them.
    """
    nats_settings.WSGATEWAY_SERVICES = ["orders"]
    with pytest.raises(CommandError, match="WSGATEWAY_SERVICES does not list 'demo'"):
        call_command("runservice", "demo", "--noreload")
    with pytest.raises(CommandError, match="WSGATEWAY_SERVICES does not list 'demo'"):
        call_command("runservice", "--noreload")


async def test_open_mode_beside_streams_of_services_says_what_to_do(
    broker: NatsBroker, nats_settings: Any, prefix: str
) -> None:
    nats_settings.WSGATEWAY_SERVICES = ["*"]
    shared = broker_from_settings(wsgateway_settings)
    with pytest.raises(BrokerMisconfigured, match=f"takes .*{prefix}.send.*delete it"):
        await shared.set_up()
    await shared.close()
