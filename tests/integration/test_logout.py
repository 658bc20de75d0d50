"""Log-out closes the session's sockets, on every gateway, and no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.test import Client

from tests.support import until
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.delivery import Delivery, Hub
from wsgateway.identity import Identity
from wsgateway.logout import on_logout
from wsgateway.protocol import Resume
from wsgateway.sockets import RawSocket, V1Socket


@pytest.mark.django_db(transaction=True)
async def test_logout_closes_the_sessions_sockets_everywhere(nats_settings: Any) -> None:
    users = get_user_model()._default_manager
    ann = await users.acreate(username="ann")  # type: ignore[misc]
    clients = [Client(), Client()]
    for client in clients:
        await sync_to_async(client.force_login)(ann)
    keys = [client.cookies["sessionid"].value for client in clients]
    hubs = [Hub(broker_from_settings(wsgateway_settings)) for _ in range(2)]
    closed: list[tuple[int, int, int]] = []
    for gateway, hub in enumerate(hubs):
        await hub.open()
        await hub.broker.wait_ready()
        for session, key in enumerate(keys):

            async def send(event: Any, at: tuple[int, int] = (gateway, session)) -> None:
                if event["type"] == "websocket.close":
                    closed.append((*at, event["code"]))

            socket = V1Socket(send) if gateway else RawSocket(send)
            await Delivery(hub, Identity("orders", "ann", session_key=key), socket).start(Resume())
    await sync_to_async(clients[0].post)("/logout/")
    await until(lambda: len(closed) >= 2)
    assert sorted(closed) == [(0, 0, 1008), (1, 0, 4501)]

    async def again(event: Any) -> None:
        if event["type"] == "websocket.close":
            closed.append((2, 0, event["code"]))

    # Django ends the session after it has said so; whoever slips in between is found a second later
    late = Delivery(hubs[0], Identity("orders", "ann", session_key=keys[0]), RawSocket(again))
    await late.start(Resume())
    await until(lambda: (2, 0, 1008) in closed)
    for hub in hubs:
        await hub.close()
    assert sorted(closed)[1:4:2] == [(0, 1, 1001), (1, 1, 4001)]


def test_logout_without_a_broker_succeeds(
    settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.5
    on_logout(request=SimpleNamespace(session=SimpleNamespace(session_key="abc")))
    assert "a log-out did not reach the gateways" in caplog.text
