"""``nats micro`` sees what a process shows of itself, with NATS' own command line (ADR-32)."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support import Gateway
from wsgateway.broker.discovery import Endpoint, Shown
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.exceptions import NobodyAnswers
from wsgateway.presence import overview
from wsgateway.protocol.subjects import Inbox

STARTED = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
BUSY = Endpoint("gateway", "ws.gateway.a-1", 4, 1, "bad request", 0.002, {"sockets": 7})


def shown(broker: NatsBroker, id: str, *endpoints: Endpoint) -> Shown:
    metadata = {"prefix": broker.subjects.prefix}
    return Shown("wsgateway", id, "0.1.0", "Does things.", STARTED, metadata, lambda: endpoints)


async def ask(broker: NatsBroker, subject: str) -> list[dict[str, Any]]:
    """Return every answer of what the test's own process shows; others answer, too."""
    found: list[dict[str, Any]] = []

    def on_answer(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
        if data:
            found.append(json.loads(data))

    reply = f"_INBOX.micro.{len(subject)}"
    subscription = broker.connection.subscribe(reply, on_answer)
    broker.connection.publish(subject, b"", reply=reply)
    for _ in range(2):  # there and back
        await broker.connection.confirm()
    subscription.close()
    return [each for each in found if each["metadata"].get("prefix") == broker.subjects.prefix]


@pytest.mark.parametrize("tail", ["", ".wsgateway", ".wsgateway.a-1"], ids=["all", "name", "id"])
async def test_answers_by_all_three_names(broker: NatsBroker, tail: str) -> None:
    closing = [broker.show(shown(broker, "a-1", BUSY)), broker.show(shown(broker, "b-2"))]
    expected = {"a-1"} if tail.endswith("a-1") else {"a-1", "b-2"}
    for verb in ("PING", "INFO", "STATS"):
        answers = await ask(broker, f"$SRV.{verb}{tail}")
        assert {each["id"] for each in answers} == expected
        assert len(answers) == len(expected)
        for each in answers:
            assert each["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
            assert (each["name"], each["version"]) == ("wsgateway", "0.1.0")
    for service in closing:
        service.close()
    with pytest.raises(NobodyAnswers):
        await broker.connection.request("$SRV.PING.wsgateway.a-1", b"")


async def test_other_names_and_verbs_get_no_answer(broker: NatsBroker) -> None:
    closing = broker.show(shown(broker, "a-1"))
    for subject in ("PING.other", "PING.wsgateway.b-2", "SCHEMA", "SCHEMA.wsgateway"):
        assert await ask(broker, f"$SRV.{subject}") == []
    closing.close()


async def test_what_info_and_stats_hold(broker: NatsBroker) -> None:
    closing = broker.show(shown(broker, "a-1", BUSY, Endpoint("idle", "ws.conn.*.*")))
    [info] = await ask(broker, "$SRV.INFO.wsgateway.a-1")
    [stats] = await ask(broker, "$SRV.STATS.wsgateway.a-1")
    closing.close()
    assert info["description"] == "Does things."
    assert info["endpoints"][0] == {
        "name": "gateway",
        "subject": "ws.gateway.a-1",
        "queue_group": "",
        "metadata": {},
    }
    assert stats["started"] == "2026-01-02T03:04:05Z"
    assert stats["endpoints"][0] == {
        "name": "gateway",
        "subject": "ws.gateway.a-1",
        "queue_group": "",
        "num_requests": 4,
        "num_errors": 1,
        "last_error": "bad request",
        "processing_time": 2_000_000,
        "average_processing_time": 500_000,
        "data": {"sockets": 7},
    }
    assert stats["endpoints"][1]["average_processing_time"] == 0


async def test_no_answer_goes_to_a_subject_of_ours(broker: NatsBroker) -> None:
    """Who may publish on ``$SRV.…`` could otherwise have a gateway write into any inbox."""
    closing = broker.show(shown(broker, "a-1"))
    heard: list[bytes] = []
    for subject in (broker.subjects.recv(Inbox("orders", "ann")), "$KV.OTHER.key"):
        broker.connection.subscribe(subject, lambda name, *_: heard.append(name))
        broker.connection.publish("$SRV.PING.wsgateway.a-1", b"", reply=subject)
    assert await ask(broker, "$SRV.PING.wsgateway.a-1")  # after them
    closing.close()
    assert heard == []


@pytest.fixture
def micro(nats_server: EmbeddedServer, nats_command: str) -> Callable[..., Awaitable[str]]:
    """Run ``nats micro`` and return what it prints."""

    async def run(*arguments: str) -> str:
        command = [nats_command, "--server", nats_server.url, "micro", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


async def test_nats_command_line(broker: NatsBroker, micro: Callable[..., Awaitable[str]]) -> None:
    closing = broker.show(shown(broker, "a-1", BUSY))
    listed = await micro("ls")
    assert "wsgateway" in listed
    assert "a-1" in listed
    info = await micro("info", "wsgateway", "a-1")
    for text in ("Does things.", "0.1.0", broker.subjects.prefix, "ws.gateway.a-1", '"sockets": 7'):
        assert text in info
    stats = await micro("stats", "wsgateway")
    assert "a-1" in stats
    assert "500" in stats  # microseconds
    assert "a-1" in await micro("ping")
    closing.close()


async def test_gateway_shows_its_sockets(
    broker: NatsBroker, gateway: Gateway, micro: Callable[..., Awaitable[str]]
) -> None:
    async with gateway.connect("service1", "ann") as socket:
        await broker.publish(Inbox("service1", "ann"), b"hi")
        assert await socket.recv() == "hi"
        await socket.send("x")
        [found] = await overview.find_gateways(broker)

        async def data() -> dict[str, Any]:
            reply = await broker.connection.request(f"$SRV.STATS.wsgateway.{found.id}", b"")
            stats = json.loads(reply.data)
            endpoints = {each["name"]: each for each in stats["endpoints"]}
            assert endpoints["gateway"]["num_requests"] > 0
            assert endpoints["gateway"]["subject"] == broker.subjects.member("gateway", found.id)
            assert endpoints["users"]["num_errors"] == 0
            shown: dict[str, Any] = endpoints["gateway"]["data"]
            return shown

        async with asyncio.timeout(20):
            while (await data())["messages_in"] < 1:
                await asyncio.sleep(0.05)
        assert await data() == {
            "sockets": 1,
            "users": 1,
            "draining": False,
            "messages_in": 1,
            "messages_out": 1,
            "connects": 1,
        }
        await broker.connection.request(broker.subjects.member("gateway", found.id), b"{")
        reply = await broker.connection.request(f"$SRV.STATS.wsgateway.{found.id}", b"")
        endpoint = json.loads(reply.data)["endpoints"][0]
        assert (endpoint["num_errors"], endpoint["last_error"]) == (1, "it is not JSON")
        assert 0 < endpoint["average_processing_time"] < endpoint["processing_time"]
        info = await micro("info", "wsgateway", found.id)
        assert '"sockets": 1' in info
        assert broker.subjects.prefix in info
        assert found.id in await micro("ls")
