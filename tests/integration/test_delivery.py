"""Delivery where the order of two steps matters; the code is stopped between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support import until
from wsgateway.broker.connection import Connection
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.subscriptions import REFUSED_PAUSE
from wsgateway.exceptions import BrokerForbidden, IdentityRefused
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.revocation import TOPIC, Notice, session_digest
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import RawEndpoint
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.window import Window

ANN = Inbox("service1", "ann")


class Client:
    """What an ASGI server would be told; *on_accept* runs within the handshake's end."""

    def __init__(
        self, hub: Hub, on_accept: Callable[[], Awaitable[None]] | None = None, session: str = ""
    ) -> None:
        self.got: list[str] = []
        self.closed_with: int | None = None
        self._on_accept = on_accept
        identity = Identity(ANN.service, ANN.user, "default", session or None)
        self.session = Session(hub, identity, Socket(Transport(self._send), RawEndpoint))

    @property
    def window(self) -> Window:
        subscription = self.session.inbox_subscription
        return subscription.window

    async def _send(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.send":
            self.got.append(event["text"])
        elif event["type"] == "websocket.close":
            self.closed_with = event["code"]
        elif self._on_accept is not None:
            await self._on_accept()


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), MemoryBroker()))
    await hub.open()
    yield hub
    await hub.close()


async def test_message_sent_while_a_second_tab_is_accepted_reaches_both(hub: Hub) -> None:
    """The second tab began after what the first had confirmed in between, and so missed it."""
    first = Client(hub)
    await first.session.start(Resume())

    async def publish() -> None:
        await hub.broker.publish(ANN, b"hello")
        await until(lambda: first.got, what="the first tab has it")
        await until(lambda: first.window.confirmed, what="and its cursor moved")

    second = Client(hub, publish)
    await second.session.start(Resume())
    await until(lambda: second.got, what="the second tab has it")
    assert first.got == second.got == ["hello"]


async def test_socket_that_is_lost_within_its_handshake_leaves_nothing(hub: Hub) -> None:
    async def vanish() -> None:
        raise ConnectionResetError

    await Client(hub, vanish).session.start(Resume())
    assert (hub.sockets, hub.inboxes) == (0, 0)


async def test_log_out_closes_the_sessions_sockets_and_no_others(hub: Hub) -> None:
    clients = [Client(hub, session=name) for name in ("mine", "mine", "other", "")]
    for client in clients:
        await client.session.start(Resume())
    hub.broker.broadcast(TOPIC, f"{Notice.ENDED} {session_digest('mine')}".encode())
    await until(lambda: clients[0].closed_with and clients[1].closed_with, what="closed")
    assert [client.closed_with for client in clients[2:]] == [None, None]
    assert clients[0].closed_with == CloseCode.NOT_AUTHENTICATED.raw


async def test_log_out_during_the_handshake_ends_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket was closed, and then accepted: on daphne it stayed, and nobody served it."""
    accepted: list[bool] = []

    async def accept() -> None:
        accepted.append(client.closed_with is None)

    client = Client(hub, accept, session="mine")
    load = hub.broker.load_cursor

    async def log_out_first(*args: Any) -> int:
        hub.broker.broadcast(TOPIC, f"{Notice.ENDED} {session_digest('mine')}".encode())
        await until(lambda: client.closed_with, what="closed")
        return await load(*args)

    monkeypatch.setattr(hub.broker, "load_cursor", log_out_first)
    await client.session.start(Resume())
    assert client.closed_with == CloseCode.NOT_AUTHENTICATED.raw
    assert accepted == [True], "once, so that the client learns the code"
    assert hub.sockets == 0


async def test_handshake_that_has_begun_before_the_gateway_ends_is_refused(hub: Hub) -> None:
    """Its socket was accepted, and cut without a word when the process was gone."""
    hub.draining = True
    with pytest.raises(IdentityRefused) as refused:
        await Client(hub).session.start(Resume())
    assert refused.value.code is CloseCode.SHUTTING_DOWN


async def test_read_that_is_refused_is_tried_again_after_a_pause(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was ready, so a read that its permissions forbid went round without a pause."""
    tried: list[float] = []
    clock = asyncio.get_running_loop().time

    async def refuse(*args: Any, **options: Any) -> Any:
        tried.append(clock())
        raise BrokerForbidden("permissions violation for publish to …")

    monkeypatch.setattr(hub.broker.inboxes, "read_after", refuse)
    await Client(hub).session.start(Resume())
    await until(lambda: len(tried) >= 4, what="four attempts")
    assert tried[3] - tried[0] >= 3 * REFUSED_PAUSE[0] * 0.9


async def test_cursor_moves_with_the_furthest_socket_of_a_device(hub: Hub) -> None:
    clients = [Client(hub), Client(hub)]
    for client in clients:
        await client.session.start(Resume())
    last = (await hub.broker.publish(ANN, b"hello")).offset
    await until(lambda: all(client.got for client in clients), what="both have it")
    for client in clients:
        await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == last
    again = Client(hub)
    await again.session.start(Resume())
    await hub.broker.publish(ANN, b"next")
    await until(lambda: again.got, what="the next")
    assert again.got == ["next"]


async def test_stream_that_is_made_again_is_read_from_its_start(hub: Hub) -> None:
    assert isinstance(hub.broker, MemoryBroker)
    client = Client(hub)
    await client.session.start(Resume())
    for number in range(3):
        await hub.broker.publish(ANN, b"old %d" % number)
    await until(lambda: len(client.got) == 3, what="three")
    await hub.subscriptions.sweep(thorough=True)
    hub.broker.store.inboxes.start_over()
    await hub.broker.publish(ANN, b"new")
    await hub.subscriptions.sweep(thorough=True)
    await until(lambda: client.got[3:] == ["new"], what="the new stream's message")
    await client.session.stop()
    assert await hub.broker.load_cursor(ANN, "default") == 1


async def test_live_message_that_was_missed_is_found_by_a_sweep(hub: Hub) -> None:
    assert isinstance(hub.broker, MemoryBroker)
    client = Client(hub)
    await client.session.start(Resume())
    window = client.window
    await until(lambda: not (window.fetching or window.wants_fetch), what="the backlog is read")
    watchers = dict(hub.broker.store.inboxes.watchers[ANN])
    hub.broker.store.inboxes.watchers[ANN].clear()  # the live copy is lost
    await hub.broker.publish(ANN, b"missed")
    hub.broker.store.inboxes.watchers[ANN].update(watchers)
    await asyncio.sleep(0.05)
    assert client.got == []
    await hub.subscriptions.sweep(thorough=False)
    await until(lambda: client.got == ["missed"], what="the missed one")
