"""A webhook that says whose socket it is; without a good answer, nobody gets in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.receiver import SECRET, Receiver, Request, answer, receiving
from tests.unit.test_checks import messages
from tests.unit.test_identity import scope
from wsgateway.conf import SETTINGS
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity import Identity, WebhookIdentity, renew_identity, resolve_identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import encode_token_protocol
from wsgateway.webhooks.sender import Sender
from wsgateway.webhooks.verdicts import Answer

PATH = "wsgateway.identity.WebhookIdentity"
ANN = {"user": "ann"}


@pytest.fixture
async def receiver(settings: Any) -> AsyncIterator[Receiver]:
    """An endpoint that decides, whose connections do not outlive a test's loop."""
    async with receiving() as receiver:
        settings.WSGATEWAY_IDENTITY = [PATH]
        settings.WSGATEWAY_IDENTITY_WEBHOOK = {
            "url": receiver.url,
            "secret": SECRET,
            "timeout": 1,
            "allow_private": ["127.0.0.0/8"],
            "headers": ["Authorization", "X-Key"],
            "cookies": ["sid"],
        }
        yield receiver


@pytest.fixture
def resolver() -> WebhookIdentity:
    """One that keeps nothing of another test."""
    return WebhookIdentity()


def ended(status: int, body: Any = b"") -> bytes:
    return answer(status, body, Connection="close")


def handshake(key: str = "k", **options: Any) -> dict[str, Any]:
    headers = [(b"x-key", key.encode()), (b"x-other", b"secret"), (b"origin", b"https://a.b")]
    return scope(headers=headers, **{"service": "orders", **options})


async def test_answer_names_the_user(receiver: Receiver, resolver: WebhookIdentity) -> None:
    receiver.answers = lambda request: ended(200, ANN)
    found = await resolver.resolve(handshake(cookies="sid=s1; other=secret", query="device=phone"))
    assert found == Identity("orders", "ann", "phone")
    (request,) = receiver.requests
    assert request.fields == {
        "type": "handshake",
        "service": "orders",
        "user": None,
        "device": "phone",
        "headers": {"x-key": "k"},
        "cookies": {"sid": "s1"},
    }
    assert request.headers["webhook-id"].startswith("auth_")


async def test_answer_may_name_service_device_and_end(
    receiver: Receiver, resolver: WebhookIdentity
) -> None:
    about = {**ANN, "service": "chat", "device": "d7", "expires_in": 60}
    receiver.answers = lambda request: ended(200, about)
    found = await resolver.resolve(scope(headers=[(b"x-key", b"k")]))
    assert found == Identity("chat", "ann", "d7")
    assert found is not None
    assert found.expires_at is not None
    assert 50 < found.expires_at - time.time() <= 60


async def test_login_may_last_for_ages(receiver: Receiver, resolver: WebhookIdentity) -> None:
    receiver.answers = lambda request: ended(200, {**ANN, "expires_in": 1e300})
    found = await resolver.resolve(handshake())
    assert found is not None
    assert found.expires_in == 1e300
    assert await resolver.resolve(handshake()) == found
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("sent", ["header", "query", "subprotocol"])
async def test_token_is_an_authorization_header_wherever_it_was(
    receiver: Receiver, resolver: WebhookIdentity, sent: str
) -> None:
    receiver.answers = lambda request: ended(200, ANN)
    made = scope(
        headers=[(b"authorization", b"Bearer t1")] if sent == "header" else [],
        query="token=t1" if sent == "query" else "",
        service="orders",
    )
    made["subprotocols"] = [encode_token_protocol("t1")] if sent == "subprotocol" else []
    assert await resolver.resolve(made) == Identity("orders", "ann")
    assert receiver.requests[0].fields["headers"] == {"authorization": "Bearer t1"}


async def test_handshake_without_credentials_is_left_to_the_next_resolver(
    receiver: Receiver, resolver: WebhookIdentity
) -> None:
    for made in (scope(service="orders"), scope(cookies=b"sid=\xff", service="orders")):
        assert await resolver.resolve(made) is None
    assert receiver.requests == []


async def test_no_content_leaves_it_to_the_next_resolver(
    receiver: Receiver, resolver: WebhookIdentity
) -> None:
    receiver.answers = lambda request: ended(204)
    assert await resolver.resolve(handshake()) is None


@pytest.mark.parametrize(
    ("status", "body", "code", "reason"),
    [
        (401, b"", CloseCode.NOT_AUTHENTICATED, "not authenticated"),
        (
            401,
            {"detail": "log in\nagain", "title": "x"},
            CloseCode.NOT_AUTHENTICATED,
            "log in again",
        ),
        (403, {"title": "locked"}, CloseCode.FORBIDDEN, "locked"),
        (403, ["x"], CloseCode.FORBIDDEN, "forbidden"),
        (403, {"detail": "x" * 500}, CloseCode.FORBIDDEN, "x" * 100),
    ],
)
async def test_refusal_is_told_to_the_client(
    receiver: Receiver,
    resolver: WebhookIdentity,
    status: int,
    body: Any,
    code: CloseCode,
    reason: str,
) -> None:
    receiver.answers = lambda request: ended(status, body)
    with pytest.raises(IdentityRefused) as caught:
        await resolver.resolve(handshake())
    assert (caught.value.code, caught.value.reason) == (code, reason)


async def never(request: Request) -> bytes:
    await asyncio.Event().wait()
    return b""


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (lambda request: ended(200, {}), 'not an object with a "user"'),
        (lambda request: ended(200, {"user": ""}), 'not an object with a "user"'),
        (lambda request: ended(200, {"user": 5}), 'not an object with a "user"'),
        (lambda request: ended(200, [ANN]), 'not an object with a "user"'),
        (lambda request: ended(200, b"OK"), "the body is not JSON"),
        (lambda request: ended(200, {**ANN, "service": 5}), "5 is not a name"),
        (lambda request: ended(200, {**ANN, "expires_in": 0}), "not a number of seconds above 0"),
        (lambda request: ended(200, b'{"user": "ann", "expires_in": 1e400}'), "is not JSON"),
        (lambda request: ended(200, {**ANN, "expires_in": 10**400}), "too large"),
        (lambda request: ended(200, b'{"user": "ann", "expires_in": %b}' % (b"9" * 5000)), "JSON"),
        (lambda request: ended(200, {**ANN, "expires_in": True}), "not a number of seconds"),
        (lambda request: ended(200, b"x" * 20_000), "has more than 10000 bytes"),
        (lambda request: ended(302), "says nothing about the handshake"),
        (lambda request: ended(400, {"user": "ann"}), "says nothing"),
        (lambda request: ended(404, {"user": "ann"}), "says nothing"),
        (lambda request: ended(500, {"user": "ann"}), "says nothing"),
        (never, "took longer than 1 s"),
    ],
)
async def test_anything_else_lets_nobody_in_and_the_client_tries_again(
    receiver: Receiver, resolver: WebhookIdentity, reply: Callable[..., Any], text: str
) -> None:
    receiver.answers = reply
    with pytest.raises(IdentityRefused) as caught:
        await resolver.resolve(handshake())
    assert caught.value.code.reconnect
    assert text in caught.value.cause
    receiver.answers = lambda request: ended(200, ANN)
    assert await resolver.resolve(handshake()) is not None  # a failure is not kept


async def test_path_may_not_contradict_the_answer(
    receiver: Receiver, resolver: WebhookIdentity
) -> None:
    receiver.answers = lambda request: ended(200, {**ANN, "service": "chat"})
    for options in ({"service": "orders"}, {"service": "chat", "user": "bob"}):
        with pytest.raises(IdentityRefused, match="the path names another"):
            await resolver.resolve(handshake(**options))


async def test_equal_handshakes_share_a_request_and_its_answer_for_a_while(
    receiver: Receiver, resolver: WebhookIdentity, settings: Any
) -> None:
    receiver.answers = lambda request: ended(200, {"user": request.fields["headers"]["x-key"]})
    found = await asyncio.gather(*(resolver.resolve(handshake()) for _ in range(20)))
    assert found == [Identity("orders", "k")] * 20
    assert await resolver.resolve(handshake()) == Identity("orders", "k")
    assert len(receiver.requests) == 1
    # Whatever the endpoint may look at makes it another handshake
    others = [handshake("k2"), handshake(service="chat"), handshake(query="device=d")]
    for other in [*others, handshake(cookies="sid=1")]:
        await resolver.resolve(other)
    assert len(receiver.requests) == 5
    settings.WSGATEWAY_IDENTITY_WEBHOOK = {**settings.WSGATEWAY_IDENTITY_WEBHOOK, "cache": 0}
    fresh = WebhookIdentity()
    for _ in range(2):
        await fresh.resolve(handshake())
    assert len(receiver.requests) == 7


async def test_storm_of_handshakes_waits_for_its_turn(
    receiver: Receiver, resolver: WebhookIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart, ten thousand connections to the endpoint were opened at once."""
    monkeypatch.setattr("wsgateway.identity.webhooks.AT_ONCE", 3)
    post, now, most = Sender.post, 0, 0

    async def counted(self: Sender, *arguments: Any) -> Answer:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await post(self, *arguments)
        finally:
            now -= 1

    monkeypatch.setattr(Sender, "post", counted)
    receiver.answers = lambda request: ended(200, ANN)
    found = await asyncio.gather(*(resolver.resolve(handshake(f"k{n}")) for n in range(20)))
    assert len(receiver.requests) == len(found) == 20
    assert most == 3


async def test_refusal_is_kept_too(receiver: Receiver, resolver: WebhookIdentity) -> None:
    receiver.answers = lambda request: ended(401)
    for _ in range(3):
        with pytest.raises(IdentityRefused):
            await resolver.resolve(handshake())
    assert len(receiver.requests) == 1


async def test_client_that_leaves_does_not_end_the_request_of_the_others(
    receiver: Receiver, resolver: WebhookIdentity
) -> None:
    go = asyncio.Event()

    async def reply(request: Request) -> bytes:
        await go.wait()
        return ended(200, ANN)

    receiver.answers = reply
    first = asyncio.create_task(resolver.resolve(handshake()))
    second = asyncio.create_task(resolver.resolve(handshake()))
    while not receiver.requests:
        await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert await second == Identity("orders", "ann")


async def test_open_socket_is_renewed_by_a_token(receiver: Receiver) -> None:
    receiver.answers = lambda request: ended(200, {**ANN, "expires_in": 60})
    made = handshake("renewed")
    identity = await resolve_identity(made)
    assert identity.resolver == PATH
    renewed = await renew_identity(made, identity, "t2")
    assert renewed == identity
    assert receiver.requests[-1].fields["headers"] == {"authorization": "Bearer t2"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "name the 'headers' or 'cookies' that it gets"),
        ({"headers": "authorization"}, "'headers' must be a list of names"),
        ({"cookies": ["ä"]}, "'cookies' must be a list of names"),
        ({"headers": ["a"], "cache": -1}, "'cache' is -1, but must be 0 to 3600"),
        ({"headers": ["a"], "secret": "hunter2"}, "does not begin with 'whsec_'"),
    ],
)
def test_wrong_setting_is_named(value: dict[str, Any], text: str, settings: Any) -> None:
    whole = {"url": "https://a.example", "secret": SECRET, **value}
    settings.WSGATEWAY_IDENTITY_WEBHOOK = whole
    problem = SETTINGS["WSGATEWAY_IDENTITY_WEBHOOK"].problem()
    assert problem is not None
    assert text in problem
    assert "hunter2" not in problem


def test_E015_webhook_identity_without_a_webhook(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = [PATH]
    assert f"WSGATEWAY_IDENTITY holds {PATH}, but" in messages()["E015"]
    settings.WSGATEWAY_IDENTITY_WEBHOOK = {
        "url": "https://a.example",
        "secret": SECRET,
        "cookies": ["sid"],
    }
    assert "E015" not in messages()
