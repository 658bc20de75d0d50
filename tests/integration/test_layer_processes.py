"""The layer under Channels' own machinery, and processes that die."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import channel_layers, get_channel_layer
from channels.testing import WebsocketCommunicator
from nats.errors import NoRespondersError

from tests.integration.layers import Make, drain, layers, receive
from tests.support import ROOT, Process, site_env

SITE = """
from channels.consumer import SyncConsumer
from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter
from asgiref.sync import async_to_sync

SECRET_KEY = "tests"
ASGI_APPLICATION = "layer_site.application"
INSTALLED_APPS = ["channels"]
CHANNEL_LAYERS = {{"default": {{
    "BACKEND": "wsgateway.layer.NatsChannelLayer",
    "CONFIG": {{"hosts": [{url!r}], "prefix": {prefix!r}}},
}}}}

class Worker(SyncConsumer):
    def work(self, message):
        async_to_sync(self.channel_layer.send)(message["reply"], {{"type": "x", "n": message["n"]}})
        async_to_sync(self.channel_layer.group_send)("done", {{"type": "x", "n": -message["n"]}})

application = ProtocolTypeRouter({{"channel": ChannelNameRouter({{"work": Worker.as_asgi()}})}})
"""

MEMBER = """
import asyncio, sys, django
django.setup()
from wsgateway.layer import NatsChannelLayer

async def main():
    layer = NatsChannelLayer(sys.argv[1], prefix=sys.argv[2])
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("service.user", channel)
    print(channel, flush=True)
    while True:
        await layer.receive(channel)

asyncio.run(main())
"""


@pytest.fixture
async def make(nats_server: Any, prefix: str) -> AsyncIterator[Make]:
    async with layers(nats_server.url, prefix) as make:
        yield make


async def has_members(client: Any, subject: str) -> bool:
    """Say whether the server knows anybody who wants *subject*."""
    try:
        await client.request(subject, b"", timeout=0.2)
    except NoRespondersError:
        return False
    except TimeoutError:
        return True
    return True


async def test_a_killed_process_is_in_no_group(make: Make, nats_server: Any, prefix: str) -> None:
    """channels_redis keeps it for ``group_expiry``, a day."""
    command = [sys.executable, "-c", MEMBER, nats_server.url, prefix]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=site_env(DJANGO_SETTINGS_MODULE="tests.settings"),
        stdout=subprocess.PIPE,
        text=True,
    )
    client = await nats.connect(nats_server.url)
    subjects = [f"{prefix}.recv.group", f"{prefix}.live.service.user"]
    try:
        assert child.stdout is not None
        assert "!" in child.stdout.readline()
        assert [await has_members(client, subject) for subject in subjects] == [True, True]
        child.kill()
        child.wait()

        async with asyncio.timeout(20):
            while any([await has_members(client, subject) for subject in subjects]):
                await asyncio.sleep(0.01)
    finally:
        child.kill()
        child.communicate()
        await client.close()


async def test_runworker(make: Make, nats_server: Any, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "layer_site.py").write_text(SITE.format(url=nats_server.url, prefix=prefix))
    layer = make()
    channel = await layer.new_channel()
    member = await layer.new_channel()
    await layer.group_add("done", member)
    for number in range(1, 6):  # before the worker runs
        await layer.send("work", {"type": "work", "n": number, "reply": channel})
    env = site_env(DJANGO_SETTINGS_MODULE="layer_site", PYTHONPATH=f"{ROOT}:{tmp_path}")
    worker = Process(
        [sys.executable, "-m", "django", "runworker", "work"], tmp_path / "worker.log", env
    )
    worker.spawn()
    try:
        assert (await receive(layer, channel, 40))["n"] == 1, worker.output
        for number in range(6, 11):
            await layer.send("work", {"type": "work", "n": number, "reply": channel})
        assert await drain(layer, channel, 9) == list(range(2, 11))
        assert await drain(layer, member, 10) == [-number for number in range(1, 11)]
    finally:
        worker.kill()
    assert "Traceback" not in worker.output


class Room(AsyncJsonWebsocketConsumer):
    """Everybody in a room hears what one says."""

    groups = ["room"]  # noqa: RUF012

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.channel_layer.group_send("room", {"type": "said", "content": content})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send_json(event["content"])


class SyncRoom(JsonWebsocketConsumer):
    """The same, synchronous."""

    groups = ["room"]  # noqa: RUF012

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        from asgiref.sync import async_to_sync

        async_to_sync(self.channel_layer.group_send)("room", {"type": "said", "content": content})

    def said(self, event: dict[str, Any]) -> None:
        self.send_json(event["content"])


@pytest.mark.parametrize("consumer", [Room, SyncRoom])
async def test_generic_consumers(
    settings: Any, nats_server: Any, prefix: str, consumer: Any
) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "wsgateway.layer.NatsChannelLayer",
            "CONFIG": {"servers": nats_server.url, "prefix": prefix},
        }
    }
    channel_layers.backends.clear()
    sockets = [WebsocketCommunicator(consumer.as_asgi(), "/") for _ in range(3)]
    layer: Any = get_channel_layer()
    try:
        for socket in sockets:
            assert (await socket.connect(timeout=20))[0]
        await sockets[0].send_json_to({"hello": 1})
        assert [await s.receive_json_from(timeout=20) for s in sockets] == [{"hello": 1}] * 3
        await sockets[2].disconnect(timeout=20)
        assert layer is not None
        await layer.group_send("room", {"type": "said", "content": "all"})
        assert [await s.receive_json_from(timeout=20) for s in sockets[:2]] == ["all"] * 2
    finally:
        for socket in sockets[:2]:
            await socket.disconnect(timeout=20)
        await layer.close()
        channel_layers.backends.clear()
    assert not layer.local.groups.by_name
