"""A client, a gateway, ``manage.py runservice`` and a backend that knows only HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.receiver import SECRET, Request, answer, receiving
from tests.support import Gateway, Process
from wsgateway.client import GatewayError, connect

Gateways = Callable[..., Gateway]


async def test_client_talks_to_a_backend_that_knows_only_http(
    gateway_factory: Gateways, tmp_path: Path
) -> None:
    """What it asks while nothing runs but the gateway waits; refusals reach it, too."""
    async with receiving() as receiver:
        replies = [answer(503), answer(200, {"price": 9}), answer(422, {"code": "no_item"})]
        receiver.answers = lambda request: replies.pop(0)
        options = {
            "url": receiver.url,
            "secret": SECRET,
            "retry": {"initial": 0.05},
            "allow_private": ["127.0.0.0/8"],
        }
        webhooks = json.dumps({"prices": options})
        env = {"WSGATEWAY_SERVICES": "prices", "WSGATEWAY_WEBHOOKS": webhooks}
        gateway = gateway_factory(**env)
        command = [sys.executable, "manage.py", "runservice", "prices", "--noreload"]
        worker = Process(command, tmp_path / "worker.log", gateway.env)
        cookies = {"Cookie": "service=prices; user=ann"}
        url = gateway.ws("/ws/prices/")
        try:
            async with connect(url, additional_headers=cookies, proxy=None) as client:
                asking = asyncio.create_task(client.request({"item": "tea"}))
                await asyncio.to_thread(worker.spawn)
                assert (await asyncio.wait_for(asking, 30)).json() == {"price": 9}
                with pytest.raises(GatewayError) as refused:
                    await client.request({"item": ""})
        finally:
            worker.kill()
    assert refused.value.code == "no_item"
    assert [request.fields["attempt"] for request in receiver.requests] == [1, 2, 1]
    assert receiver.requests[0].fields["connection"]


def decide(request: Request) -> bytes:
    """Know ann, refuse eve, and fail otherwise."""
    match request.fields["headers"]:
        case {"authorization": "Bearer ann"}:
            return answer(200, {"user": "ann"})
        case {"authorization": "Bearer eve"}:
            return answer(403, {"detail": "locked"})
    return answer(500)


async def test_backend_decides_who_may_connect(gateway_factory: Gateways) -> None:
    """Sockets and readers of events; if it fails, nobody gets in."""
    async with receiving() as receiver:
        receiver.answers = decide
        webhook = {
            "url": receiver.url,
            "secret": SECRET,
            "headers": ["authorization"],
            "allow_private": ["127.0.0.0/8"],
        }
        gateway = gateway_factory(
            WSGATEWAY_IDENTITY="wsgateway.identity.WebhookIdentity",
            WSGATEWAY_IDENTITY_WEBHOOK=json.dumps(webhook),
        )
        ends = {"ann": (200, None), "eve": (403, 4503), "bob": (500, 4018)}
        async with httpx.AsyncClient(trust_env=False) as http:
            for name, (status, code) in ends.items():
                token = {"Authorization": f"Bearer {name}"}
                async with http.stream("GET", gateway.http("/sse/orders/"), headers=token) as found:
                    assert found.status_code == status
                options: dict[str, Any] = {
                    "additional_headers": token,
                    "subprotocols": ["wsgateway.v1"],
                }
                async with gateway.connect("orders", name, **options) as ws:
                    if code is None:
                        assert json.loads(await ws.recv())["user"] == name
                        continue
                    with pytest.raises(ConnectionClosed) as closed:
                        await ws.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == code
