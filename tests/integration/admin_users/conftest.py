"""Staff who look at the admin, and sockets of users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from websockets.sync.client import ClientConnection, connect

from tests.integration.admin_users.helpers import (
    Open,
)
from tests.support import Gateway, wait_for
from wsgateway import presence
from wsgateway.identity import make_token


@pytest.fixture(autouse=True)
def _services(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders", "demo"]


@pytest.fixture
def root(client: Client) -> Client:
    """A superuser's browser."""
    client.force_login(get_user_model().objects.create_superuser("root"))
    return client


@pytest.fixture(params=["memory", "nats"])
def root_of_each(request: pytest.FixtureRequest) -> Client:
    """The same, with each broker."""
    if request.param == "nats":
        request.getfixturevalue("nats_settings")
    client: Client = request.getfixturevalue("root")
    return client


@pytest.fixture
def open_socket(gateway_factory: Callable[..., Gateway], nats_settings: Any) -> Iterator[Open]:
    """Open a socket at a gateway: ``open_socket("orders", "ann", device="phone")``."""
    gateway = gateway_factory(SECRET_KEY=nats_settings.SECRET_KEY, WSGATEWAY_SERVICES="orders,demo")

    def open_one(
        service: str, user: str, device: str = "default", at: Gateway = gateway
    ) -> ClientConnection:
        query = f"?token={make_token(service, user)}&device={device}"
        opening = connect(
            at.ws(f"/ws/{service}/") + query,
            subprotocols=["wsgateway.v1"],  # type: ignore[list-item]
            user_agent_header="Test <b>browser</b>",
            proxy=None,
        )
        socket = stack.enter_context(opening)
        opened[service, user] += 1
        wait_for(lambda: len(presence.connections(service, user)) == opened[service, user])
        return socket

    opened: Counter[tuple[str, str]] = Counter()
    with ExitStack() as stack:
        yield open_one
