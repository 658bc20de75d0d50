"""An identity has an end: the socket closes with 4501, unless its client refreshes before."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import until
from tests.unit.test_session import Broker, Client
from wsgateway.broker.connection import Connection
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.identity import Identity, TokenIdentity, make_token, renew_identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Endpoint, RawEndpoint
from wsgateway.protocol.v1 import Resume, encode_refresh
from wsgateway.protocol.v1.endpoint import V1Endpoint

SCOPE: dict[str, Any] = {
    "type": "websocket",
    "path": "/ws/orders/",
    "headers": [(b"cookie", b"user=ann; service=orders")],
    "query_string": b"",
    "url_route": {"kwargs": {"service": "orders"}},
}


@pytest.fixture(autouse=True)
def resolvers(settings: Any) -> Any:
    names = ("TokenIdentity", "CookieIdentity")
    settings.WSGATEWAY_IDENTITY = [f"wsgateway.identity.{name}" for name in names]
    settings.WSGATEWAY_REVALIDATE_INTERVAL = 3600.0
    return settings


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub(Connection(asyncio.get_running_loop(), Broker()))
    await hub.open()
    yield hub
    await hub.close()


async def opened(
    hub: Hub, max_age: float, kind: type[Endpoint] = V1Endpoint
) -> tuple[Session, Client]:
    token = make_token("orders", "ann", max_age=max_age)
    identity = await TokenIdentity().resolve(
        {**SCOPE, "query_string": f"token={token}&device=tv".encode()}
    )
    assert identity is not None
    client = Client()
    session = Session(hub, identity, Socket(client, kind), SCOPE)
    await session.start(Resume())
    return session, client


async def answer(session: Session, client: Client, token: str) -> dict[str, Any]:
    client.got.clear()
    await session.receive(encode_refresh(token))
    await until(lambda: client.got, what="the answer")
    found: dict[str, Any] = json.loads(client.got[-1])
    return found


@pytest.mark.parametrize(("kind", "code"), [(V1Endpoint, 4501), (RawEndpoint, 1008)])
async def test_expiry_closes_every_kind_of_socket(
    hub: Hub, kind: type[Endpoint], code: int
) -> None:
    """It closed with 4016, at the next revalidation: up to a minute too late."""
    _, client = await opened(hub, 0.1, kind)
    await until(lambda: client.closed_with is not None, what="closed", timeout=5)
    assert client.closed_with == code


async def test_refresh_keeps_the_socket_open(hub: Hub) -> None:
    session, client = await opened(hub, 0.3)
    welcome = json.loads(client.got[0])
    assert 0 < welcome["expires_in"] <= 0.3
    told = await answer(session, client, make_token("orders", "ann", max_age=60))
    assert told["type"] == "refreshed"
    assert 59 < told["expires_in"] <= 60
    await asyncio.sleep(0.4)  # past the end of the first token, which closes nothing any more
    assert client.closed_with is None
    told = await answer(session, client, make_token("orders", "ann", max_age=0.2))
    assert told["type"] == "refreshed"
    await until(lambda: client.closed_with == CloseCode.NOT_AUTHENTICATED, what="closed")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (make_token("orders", "bob"), "the new token is for another user"),
        (make_token("chat", "ann"), "the path names another service"),
        (make_token("orders", "ann", "phone"), "the token names another device"),
        (make_token("orders", "ann", max_age=-1), "the token has expired; get a new one"),
        ("junk", "the token is not valid"),
    ],
    ids=range(5),
)
async def test_token_of_somebody_else_is_refused(
    hub: Hub, caplog: pytest.LogCaptureFixture, token: str, reason: str
) -> None:
    """The cookie of this socket's handshake names ann: it may not replace the token."""
    session, client = await opened(hub, 60)
    caplog.set_level(logging.DEBUG)
    told = await answer(session, client, token)
    assert told == {
        "type": "error",
        "id": None,
        "code": "unauthorized",
        "message": reason,
        "temporary": False,
    }
    assert client.closed_with is None
    assert token == "junk" or token not in caplog.text
    assert "refused a new token of" in caplog.text
    assert session.identity.expires_in is not None
    assert session.identity.expires_in < 61


class Fails:
    reads_tokens = True

    async def resolve(self, scope: Any) -> Identity | None:
        raise OSError("the database is away")


async def test_failure_is_temporary_and_logged(
    hub: Hub, resolvers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session, client = await opened(hub, 60)
    resolvers.WSGATEWAY_IDENTITY = [f"{__name__}.Fails"]
    told = await answer(session, client, "any")
    assert (told["code"], told["temporary"]) == ("unauthorized", True)
    assert "the database is away" in caplog.text


async def test_socket_that_closes_during_a_refresh_leaves_nothing(hub: Hub) -> None:
    session, _ = await opened(hub, 60)
    hub.detach(session)
    before = session.identity
    hub.renew(session, replace(before, expires_at=1.0))
    assert session.identity is before


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_any_token_renews_or_is_refused(token: str) -> None:
    identity = Identity("orders", "ann", "tv")

    async def renew() -> None:
        with pytest.raises(IdentityRefused):
            await renew_identity(SCOPE, identity, token)

    asyncio.run(renew())


async def test_token_in_the_list_of_subprotocols_is_read() -> None:
    from wsgateway.protocol.subprotocols import encode_token_protocol

    offer = encode_token_protocol(make_token("orders", "ann"))
    found = await TokenIdentity().resolve({**SCOPE, "subprotocols": ["wsgateway.v1", offer]})
    assert found == Identity("orders", "ann")
    for offers in (
        ["wsgateway.token.*"],
        [offer, encode_token_protocol(make_token("orders", "bob"))],
    ):
        with pytest.raises(IdentityRefused) as refused:
            await TokenIdentity().resolve({**SCOPE, "subprotocols": offers})
        assert refused.value.code is CloseCode.BAD_REQUEST
