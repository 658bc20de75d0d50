"""The original demonstration, with tools nobody here wrote: websocat, npm's NATS client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from tests.support import ROOT, Gateway
from wsgateway.broker.embedded import EmbeddedServer

SIZES = [1, 2, 125, 126, 127, 1000, 65_535, 65_536, 65_537, 300_000, 900_000]


class Node:
    """The other language's NATS client; each call is a line to its standard input."""

    def __init__(self, url: str) -> None:
        node = shutil.which("node")
        assert node, "these tests need Node.js"
        self.process = subprocess.Popen(
            [node, str(ROOT / "tests" / "js" / "nats.mjs"), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, op: str, **values: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdin.write(json.dumps({"op": op, **values}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def publish(self, subject: str, data: bytes) -> None:
        self("publish", subject=subject, data=base64.b64encode(data).decode())

    def close(self) -> None:
        self.process.communicate(timeout=10)


@pytest.fixture
def node(nats_server: EmbeddedServer) -> Iterator[Node]:
    client = Node(nats_server.url)
    yield client
    client.close()


def texts(size: int) -> str:
    """Return text of *size* bytes of UTF-8, with letters of two bytes if they fit."""
    return "é" * (size // 2) + "x" * (size % 2)


def binary(size: int) -> bytes:
    """Return *size* bytes that are not UTF-8."""
    return b"\xff" + os.urandom(size - 1)


async def test_other_language_to_browser(gateway: Gateway, node: Node, prefix: str) -> None:
    subject = f"{prefix}.recv.service1.user001"
    async with gateway.connect("service1", "user001") as ws:
        for size in SIZES:
            for payload in (texts(size), binary(size)):
                data = payload.encode() if isinstance(payload, str) else payload
                await asyncio.to_thread(node.publish, subject, data)
                assert await asyncio.wait_for(ws.recv(), 20) == payload


async def test_browser_to_other_language(gateway: Gateway, node: Node, prefix: str) -> None:
    plain = f"{prefix}.send.service1.>"
    await asyncio.to_thread(node, "subscribe", subject=plain)
    sent: list[str | bytes] = []
    async with gateway.connect("service1", "user001") as ws:
        for size in SIZES:
            for payload in (texts(size), binary(size)):
                sent.append(payload)
                await ws.send(payload)
        got = [await asyncio.to_thread(node, "next", subject=plain) for _ in sent]
    queue = await asyncio.to_thread(
        node,
        "consume",
        stream=f"{prefix.upper()}_SEND_service1",
        filter=f"{prefix}.send.service1.*",
        count=len(sent),
    )
    for found in (got, queue["found"]):
        assert {message["subject"] for message in found} == {f"{prefix}.send.service1.user001"}
        for message, payload in zip(found, sent, strict=True):
            text = isinstance(payload, str)
            data = payload.encode() if isinstance(payload, str) else payload
            assert message["kind"] == ("text" if text else "binary")
            assert base64.b64decode(message["data"]) == data


def websocat(url: str, cookie: str, *options: str) -> subprocess.Popen[bytes]:
    program = shutil.which("websocat") or shutil.which(
        "websocat", path=os.path.dirname(sys.executable)
    )
    assert program, "pip install websocat"
    return subprocess.Popen(
        [program, *options, url, "-H", f"Cookie: {cookie}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_websocat_with_cookies_that_win_over_the_path(
    gateway: Gateway, node: Node, prefix: str
) -> None:
    node("subscribe", subject=f"{prefix}.send.service1.>")
    client = websocat(gateway.ws("/ws/notification/user001/"), "user=user001;service=service1")
    assert client.stdin
    assert client.stdout
    try:
        client.stdin.write(b"hello from websocat\n")
        client.stdin.flush()
        sent = node("next", subject=f"{prefix}.send.service1.>")
        assert sent["subject"] == f"{prefix}.send.service1.user001"
        assert base64.b64decode(sent["data"]).rstrip() == b"hello from websocat"
        node.publish(f"{prefix}.recv.service1.user001", b"hello from node")
        assert client.stdout.readline() == b"hello from node\n"
    finally:
        client.kill()
        client.communicate()


def test_django_group_send_arrives(gateway: Gateway, nats_settings: Any) -> None:
    from channels.layers import channel_layers, get_channel_layer

    nats_settings.CHANNEL_LAYERS = {"default": {"BACKEND": "wsgateway.layer.NatsChannelLayer"}}
    channel_layers.backends = {}
    client = websocat(gateway.ws("/ws/service1/user001/"), "user=user001;service=service1")
    assert client.stdout
    try:
        layer = get_channel_layer()
        assert layer is not None
        event = {"type": "ws.message", "text": "hi"}
        async_to_sync(layer.group_send)("service1.user001", event)
        assert client.stdout.readline() == b"hi\n"
    finally:
        client.kill()
        client.communicate()
        channel_layers.backends = {}
