"""No payload and no secret gets into a log, whatever goes wrong, even at DEBUG."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.integration.workers import answers, no_services, offer, serving
from tests.support import Gateway, until
from wsgateway import Message, Reject, RetryPolicy
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.identity import make_token
from wsgateway.protocol.subprotocols import encode_token_protocol
from wsgateway.protocol.v1 import encode_refresh
from wsgateway.services import registry

__all__ = ["no_services"]  # a fixture

V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"]}
PASSWORD, SESSION, PAYLOAD = "s3cret-of-nats", "s3ssionkeys3ssionkeys3ssionkey32", "s3cret-text"


async def tokens_of_a_browser(gateway: Gateway) -> tuple[list[str], list[str]]:
    """Send tokens in the list of subprotocols, and others to refresh them; return all of them.

    A browser fails if nothing that it offered is selected, and reads what is.
    """
    token, other = make_token("orders", "ann", "browser"), make_token("orders", "bob")
    offers = encode_token_protocol(token), encode_token_protocol("junk.of.mine")
    for kind in ("wsgateway.raw", "wsgateway.v1"):
        for protocol in offers:
            options: dict[str, Any] = {"path": "/ws/orders/", "subprotocols": [protocol, kind]}
            async with gateway.connect("", "", additional_headers={}, **options) as socket:
                assert socket.subprotocol == kind
                assert socket.response is not None
                assert protocol not in str(socket.response.headers)
                if protocol == offers[1]:
                    with pytest.raises(ConnectionClosed) as closed:
                        await asyncio.wait_for(socket.recv(), 10)
                    assert closed.value.rcvd is not None
                    assert protocol not in closed.value.rcvd.reason
                elif kind == "wsgateway.v1":
                    assert 0 < json.loads(await socket.recv())["expires_in"] <= 3600
                    for text, answer in ((token, "refreshed"), (other, "error")):
                        await socket.send(encode_refresh(text))
                        assert json.loads(await socket.recv())["type"] == answer
    return [*offers, token], [other]


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_logs_hold_no_secret(
    gateway_factory: Callable[..., Gateway],
    own_server: EmbeddedServer,
    settings: Any,
    server: str,
) -> None:
    settings.SECRET_KEY = "tests"
    gateway = gateway_factory(
        server,
        NATS_BROKER_URL=f"nats://gateway:{PASSWORD}@127.0.0.1:{own_server.port}",
        WSGATEWAY_MAX_MESSAGE_SIZE="100",
        WSGATEWAY_BROKER_TIMEOUT="0.5",
        LOG_LEVEL="DEBUG",
        LOG_FORMAT="json" if server == "daphne" else "line",
    )
    good, expired = make_token("orders", "ann"), make_token("orders", "ann", max_age=-1)
    cookie = {"Cookie": f"sessionid={SESSION}"}
    for query, headers in ((expired, {}), (good[:-2], {}), ("", cookie)):
        path = f"/ws/orders/?token={query}"
        # The session's table does not exist, which ends in HTTP 500 and a traceback
        with pytest.raises((InvalidStatus, ConnectionClosed)):
            async with gateway.connect("", "", path=path, additional_headers=headers) as socket:
                await asyncio.wait_for(socket.recv(), 10)
    for options in ({}, V1):
        path = f"/ws/orders/?token={good}"
        async with gateway.connect("", "", path=path, additional_headers={}, **options) as socket:
            if options:
                await socket.send(f"junk {PAYLOAD}")
                await socket.send(json.dumps({"type": "message", "id": "1", "data": PAYLOAD * 50}))
            await socket.send(PAYLOAD * 500)
            await asyncio.wait_for(socket.wait_closed(), 10)
    offered, renewed = await tokens_of_a_browser(gateway)
    path = f"/ws/orders/?token={good}"
    async with gateway.connect("", "", path=path, additional_headers={}) as socket:
        await asyncio.to_thread(own_server.stop)
        await socket.send(PAYLOAD)
        await asyncio.wait_for(socket.wait_closed(), 60)
    await until(lambda: "lost the connection to NATS" in gateway.output)
    lines = gateway.output.splitlines()
    if (
        server == "uvicorn"
    ):  # its own lines hold URLs: docs/explanation/security.md says how to silence them
        lines = [line for line in lines if not line.startswith("INFO:     ")]
    for secret in (PASSWORD, SESSION, PAYLOAD, good, good[:-2], expired, *offered, *renewed):
        assert secret not in "\n".join(lines)
    if server == "daphne":
        events = [json.loads(line) for line in lines if line.startswith("{")]
        closed = next(each for each in events if each.get("code") == 4509)
        assert closed["service"] == "orders"
        assert closed["user"] == "ann"
        assert len(closed["connection"]) == 32


def said(caplog: pytest.LogCaptureFixture) -> str:
    """Return everything that the records hold, tracebacks and fields included."""
    show = logging.Formatter().format
    return "\n".join(f"{show(each)} {vars(each)}" for each in caplog.records)


@pytest.mark.usefixtures("no_services")
async def test_workers_log_no_payload(broker: NatsBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wsgateway")

    @registry.service("orders", retry=RetryPolicy(initial=0.01, cap=0.02))
    async def handle(message: Message) -> None:
        if message.text.startswith("reject"):
            raise Reject("no")
        if message.text.startswith("fail"):
            raise OSError("cannot")
        message.json()

    for kind in ("reject", "fail", "junk"):
        await offer(broker, f"{kind} {PAYLOAD}", user=f"{kind}er", Ws_Client_Id=kind)
    await offer(broker, PAYLOAD.encode() + b"\xff", user="binary")
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] == 1)
        await until(lambda: worker.counts["rejected"] == 3)
        await answers(broker)
    assert "becomes a dead letter" in said(caplog)
    assert PAYLOAD not in said(caplog)
    dead = next(each for each in caplog.records if "becomes a dead letter" in each.getMessage())
    fields = {"service": "orders", "user": "failer", "attempt": 5, "outcome": "dead-lettered"}
    assert vars(dead).items() >= fields.items()
