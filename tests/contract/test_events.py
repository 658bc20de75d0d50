"""Events, signals and watching, with gateways on every kind of broker."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.contract.test_presence import Sockets, fresh, hubs, sockets
from tests.integration.test_presence_events import signals_of_runevents
from tests.support import until
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Inbox

__all__ = ["fresh", "hubs", "sockets"]  # fixtures

Codes = dict[str, list[int]]


async def test_signals_follow_sockets_on_two_gateways(
    hubs: list[Hub], sockets: Sockets, settings: Any
) -> None:
    settings.WSGATEWAY_OFFLINE_GRACE = 0.2
    async with signals_of_runevents("service1") as (got, _):
        first = await sockets.open(hubs[0], "ann")
        await until(lambda: ("user_online", "ann") in got)
        second = await sockets.open(hubs[1], "ann")
        await until(lambda: got.count(("socket_connected", "ann")) == 2)
        await first.close(CloseCode.SHUTTING_DOWN)
        await first.stop()
        await until(lambda: got.count(("socket_disconnected", "ann")) == 1)
        await second.close(CloseCode.SHUTTING_DOWN)
        await second.stop()
        await until(lambda: ("user_offline", "ann") in got)
    edges = [name for name, _ in got if name.startswith("user_")]
    assert edges == ["user_online", "user_offline"]


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is written to sockets besides messages."""
    written: list[dict[str, Any]] = []

    async def write(self: Any, frame: str) -> bool:
        written.append(json.loads(frame))
        return True

    monkeypatch.setattr("wsgateway.gateway.sockets.Socket.write", write)
    return written


async def watch(session: Session, user: str) -> None:
    await session.receive(json.dumps({"type": "watch", "id": user, "user": user}))


async def test_a_socket_on_one_gateway_watches_a_user_on_another(
    hubs: list[Hub], sockets: Sockets, frames: list[dict[str, Any]], settings: Any
) -> None:
    settings.WSGATEWAY_MAY_WATCH = "tests.presence_app.rights.may_watch"
    ann = await sockets.open(hubs[0], "ann")

    def states() -> list[bool | None]:
        return [f["online"] for f in frames if f["type"] in ("watching", "presence")]

    await watch(ann, "bob")
    await until(lambda: states() == [False])
    bob = await sockets.open(hubs[1], "bob")
    await until(lambda: states() == [False, True])
    await bob.close(CloseCode.SHUTTING_DOWN)
    await bob.stop()
    await until(lambda: states() == [False, True, False])
    assert hubs[0].watching.targets == 1
    await ann.stop()
    assert hubs[0].watching.targets == 0


async def test_a_watch_that_ends_while_the_right_is_asked_for_is_not_answered(
    hubs: list[Hub],
    sockets: Sockets,
    frames: list[dict[str, Any]],
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.WSGATEWAY_MAY_WATCH = "tests.presence_app.rights.may_watch_async"
    asked, go = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> bool:
        asked.set()
        await go.wait()
        return True

    monkeypatch.setattr("tests.presence_app.rights.may_watch_async", slow)
    ann = await sockets.open(hubs[0], "ann")
    await watch(ann, "bob")
    await asked.wait()
    await ann.receive('{"type":"unwatch","user":"bob"}')
    go.set()
    await watch(ann, "carol")
    await until(lambda: any(f.get("id") == "carol" for f in frames))
    assert not [f for f in frames if f.get("id") == "bob"]
    assert hubs[0].watching.targets == 1


async def test_a_client_that_does_not_read_gets_the_last_state_only(
    hubs: list[Hub], sockets: Sockets, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not read yet is replaced by what is true, so it costs no memory."""
    settings.WSGATEWAY_MAY_WATCH = "tests.presence_app.rights.may_watch"
    reads, written = asyncio.Event(), []

    async def write(self: Any, frame: str) -> bool:
        fields = json.loads(frame)
        if fields["type"] in ("watching", "presence"):
            written.append(fields["online"])
            await reads.wait()
        return True

    monkeypatch.setattr("wsgateway.gateway.sockets.Socket.write", write)
    monkeypatch.setattr("wsgateway.gateway.watching.SETTLE", 0.0)
    ann = await sockets.open(hubs[0], "ann")
    await watch(ann, "bob")
    await until(lambda: written == [False])  # and the client has not read that yet
    heard: list[bool | None] = []

    class Other:
        """A socket that reads."""

        def tell(self, inbox: Any, online: Any) -> None:
            heard.append(online)

        def recheck(self, inbox: Inbox | None = None) -> None:
            """Keep watching."""

    hubs[0].watching.add(Inbox("service1", "bob"), Other())
    for count in range(1, 6):
        bob = await sockets.open(hubs[1], "bob")
        await until(lambda count=count: heard.count(True) >= count)
        await bob.stop()
        await until(lambda count=count: heard.count(False) > count)
    last = await sockets.open(hubs[1], "bob")
    await until(lambda: heard[-1] is True)
    reads.set()
    await until(lambda: written[-1] is True)
    assert written == [False, True]
    await last.stop()
