"""Whose socket is this: every resolver, and every kind of junk."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core import signing
from django.http import HttpResponse
from hypothesis import given
from hypothesis import strategies as st

from wsgateway import identity
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.transport import MAX_REASON
from wsgateway.identity import (
    AnonymousIdentity,
    CookieIdentity,
    Identity,
    SessionIdentity,
    SignedCookieIdentity,
    TokenIdentity,
    base,
    make_token,
    resolve_identity,
    set_identity_cookie,
)
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Inbox

REFUSED = IdentityRefused


@pytest.mark.parametrize("name", ["DEFAULT_DEVICE", "Scope"])
def test_names_that_resolvers_of_projects_use_can_be_imported(name: str) -> None:
    """When the module became a folder, `from wsgateway.identity import Scope` stopped working."""
    assert name in identity.__all__
    assert getattr(identity, name) is getattr(base, name)


def scope(
    *,
    cookies: str | bytes = b"",
    query: str | bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
    **route: str,
) -> dict[str, Any]:
    raw = cookies.encode() if isinstance(cookies, str) else cookies
    return {
        "type": "websocket",
        "headers": [(b"cookie", raw), *(headers or [])],
        "query_string": query.encode() if isinstance(query, str) else query,
        "url_route": {"args": (), "kwargs": route},
    }


async def refusal(resolver: Any, handshake: dict[str, Any]) -> int:
    with pytest.raises(IdentityRefused) as caught:
        await resolver.resolve(handshake)
    assert str(caught.value) == caught.value.reason
    return caught.value.code


def test_identity_names_an_inbox_and_ignores_the_session_when_compared() -> None:
    one = Identity("orders", "ann", session_key="k1")
    assert one.inbox == Inbox("orders", "ann")
    assert one.device == "default"
    assert one == Identity("orders", "ann", session_key="k2")
    assert "k1" not in repr(one)


@pytest.mark.parametrize("bad", ["", "x" * 256, "\udc80"])
@pytest.mark.parametrize("part", ["service", "user", "device"])
def test_identity_refuses_unusable_names(part: str, bad: str) -> None:
    names: dict[str, Any] = {"service": "s", "user": "u", "device": "d", part: bad}
    with pytest.raises(IdentityRefused, match=f"{part} is not a usable name") as caught:
        Identity(**names)
    assert caught.value.code == CloseCode.BAD_REQUEST


# -- plain cookies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cookies", "query", "route", "expected"),
    [
        ("user=user001;service=service1", "", {}, Identity("service1", "user001")),
        (
            "user=user001;service=service1",
            "",
            {"service": "notification", "user": "other"},
            Identity("service1", "user001"),
        ),
        ("user=ann", "", {"service": "orders"}, Identity("orders", "ann")),
        ("user=ann; service=s", "device=phone", {}, Identity("s", "ann", "phone")),
        ("user=ann; service=s", "device=", {}, Identity("s", "ann")),
        ("user=ann; user=ann; service=s", "", {}, Identity("s", "ann")),
        ("user=käte; service=s", "", {}, Identity("s", "käte")),
        ("user=a.b*>; service=s", "", {}, Identity("s", "a.b*>")),
        ("service=s", "", {"service": "s", "user": "ann"}, None),
        ("user=ann", "", {}, None),
        ("user=; service=s", "", {}, None),
        ("", "", {"service": "s", "user": "ann"}, None),
    ],
)
async def test_plain_cookies_win_over_the_path(
    cookies: str, query: str, route: dict[str, Any], expected: Identity | None
) -> None:
    found = await CookieIdentity().resolve(scope(cookies=cookies, query=query, **route))
    assert found == expected
    if found and expected:
        assert found.device == expected.device


@pytest.mark.parametrize(
    ("cookies", "query"),
    [
        ("user=ann; user=bob; service=s", ""),
        (b"user=\xff\xfe; service=s", ""),
        ("user=" + "x" * 5000 + "; service=s", ""),
        ("user=ann; service=s", "device=a&device=b"),
        ("user=ann; service=s", "device=%ff"),
        ("user=ann; service=s", b"device=\xff"),
        ("user=ann; service=s", "&".join(f"a{n}=1" for n in range(101))),
        ("user=ann; service=s", "device=" + "x" * 300),
    ],
)
async def test_junk_is_a_bad_request(cookies: str | bytes, query: str | bytes) -> None:
    handshake = scope(cookies=cookies, query=query)
    assert await refusal(CookieIdentity(), handshake) == CloseCode.BAD_REQUEST


async def test_junk_in_other_cookies_does_not_matter() -> None:
    handshake = scope(cookies=b"tracker=\xff; user=ann; service=s; ;;=")
    assert await CookieIdentity().resolve(handshake) == Identity("s", "ann")


@given(cookies=st.binary(max_size=80), query=st.binary(max_size=40), path=st.text(max_size=10))
@pytest.mark.parametrize(
    "resolver", [CookieIdentity(), SignedCookieIdentity(), TokenIdentity(), SessionIdentity()]
)
def test_resolvers_answer_or_refuse_whatever_they_are_sent(
    resolver: Any, cookies: bytes, query: bytes, path: str
) -> None:
    handshake = scope(
        cookies=b"user=" + cookies + b"; wsgateway=" + cookies,
        query=b"token=" + query + b"&device=" + cookies,
        headers=[(b"authorization", b"Bearer " + cookies)],
        service=path,
        user=path,
    )
    step = resolver.resolve(handshake)
    try:
        step.send(None)
    except (StopIteration, IdentityRefused):
        return
    raise AssertionError("resolvers without a session wait for nothing")


# -- tokens ----------------------------------------------------------------------------------


async def test_token_in_the_query_or_the_header() -> None:
    token = make_token("orders", "ann@example.com")
    expected = Identity("orders", "ann@example.com")
    resolver = TokenIdentity()
    assert await resolver.resolve(scope(query=f"token={quote(token)}")) == expected
    bearer = [(b"authorization", b"Bearer " + token.encode())]
    assert await resolver.resolve(scope(headers=bearer)) == expected
    basic = [(b"authorization", b"Basic abc")]
    assert await resolver.resolve(scope(headers=basic)) is None
    assert await resolver.resolve(scope()) is None


async def test_token_chooses_the_device_or_leaves_it_to_the_client() -> None:
    free, bound = make_token("s", "u"), make_token("s", "u", "phone")
    resolver = TokenIdentity()
    found = await resolver.resolve(scope(query=f"token={free}&device=tv"))
    assert found == Identity("s", "u", "tv")
    assert await resolver.resolve(scope(query=f"token={bound}")) == Identity("s", "u", "phone")
    elsewhere = scope(query=f"token={bound}&device=tv")
    assert await refusal(resolver, elsewhere) == CloseCode.FORBIDDEN


@pytest.mark.parametrize(
    "token",
    [
        "junk",
        "a:b:c",
        ":::",
        make_token("s", "u", max_age=-1),
        make_token("s", "u")[:-1],
        signing.dumps(["s", "u", None, 9e9], salt="other"),
        signing.dumps({"s": 1}, salt="wsgateway.token"),
    ],
    ids=range(7),  # the tokens differ in each of xdist's processes
)
async def test_bad_tokens_are_not_authenticated(token: str) -> None:
    assert (
        await refusal(TokenIdentity(), scope(query=f"token={token}")) == CloseCode.NOT_AUTHENTICATED
    )


@pytest.mark.parametrize("route", [{"service": "other"}, {"service": "s", "user": "bob"}])
async def test_path_may_not_contradict_a_token(route: dict[str, Any]) -> None:
    handshake = scope(query=f"token={make_token('s', 'u')}", **route)
    assert await refusal(TokenIdentity(), handshake) == CloseCode.FORBIDDEN


def test_token_for_an_unusable_name_is_never_made() -> None:
    with pytest.raises(IdentityRefused):
        make_token("", "ann")


# -- signed cookies --------------------------------------------------------------------------


def signed_cookie(**options: Any) -> str:
    response = HttpResponse()
    set_identity_cookie(response, "orders", "ann", **options)
    return f"wsgateway={response.cookies['wsgateway'].coded_value}"


async def test_signed_cookie_comes_back_as_the_identity() -> None:
    found = await SignedCookieIdentity().resolve(scope(cookies=signed_cookie(device="tv")))
    assert found == Identity("orders", "ann", "tv")


@pytest.mark.parametrize(
    "cookies",
    ["wsgateway=junk", "", signed_cookie(max_age=-1), "wsgateway=" + make_token("orders", "ann")],
    ids=range(4),
)
async def test_bad_signed_cookie_counts_as_none(cookies: str) -> None:
    assert await SignedCookieIdentity().resolve(scope(cookies=cookies)) is None


@pytest.mark.parametrize(("debug", "secure"), [(True, ""), (False, True)])
def test_signed_cookie_is_out_of_reach_of_scripts(
    settings: Any, debug: bool, secure: bool | str
) -> None:
    settings.DEBUG = debug
    settings.SESSION_COOKIE_PATH = "/chat"
    response = HttpResponse()
    set_identity_cookie(response, "orders", "ann", max_age=60)
    morsel = response.cookies["wsgateway"]
    assert morsel["path"] == "/chat"
    assert (morsel["httponly"], morsel["samesite"], morsel["max-age"]) == (True, "Lax", 60)
    assert morsel["secure"] == secure


# -- sessions --------------------------------------------------------------------------------


def log_in(name: str, *, active: bool = True) -> str:
    user = get_user_model().objects.create_user(name, is_active=active)
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session["_auth_user_backend"] = "django.contrib.auth.backends.ModelBackend"
    session["_auth_user_hash"] = user.get_session_auth_hash()
    session.save()
    assert session.session_key is not None
    return session.session_key


@pytest.mark.django_db(transaction=True)
class TestSessionIdentity:
    async def test_logged_in_user_is_named_by_the_session(self) -> None:
        from asgiref.sync import sync_to_async

        key = await sync_to_async(log_in)("ann")
        cookies = f"sessionid={key}"
        resolver = SessionIdentity()
        found = await resolver.resolve(scope(cookies=cookies, query="device=tv", service="orders"))
        assert found == Identity("orders", "ann", "tv")
        assert found is not None
        assert found.session_key == key
        own = scope(cookies=cookies, service="orders", user="ann")
        assert await resolver.resolve(own) == Identity("orders", "ann")
        others = scope(cookies=cookies, service="orders", user="bob")
        assert await refusal(resolver, others) == CloseCode.FORBIDDEN
        assert await refusal(resolver, scope(cookies=cookies)) == CloseCode.BAD_REQUEST

    @pytest.mark.parametrize("key", ["", "x" * 32, "short", "\x00" * 32, "käte" * 8])
    async def test_unknown_session_is_nobody(self, key: str) -> None:
        assert await SessionIdentity().resolve(scope(cookies=f"sessionid={key}")) is None

    async def test_inactive_user_is_nobody(self) -> None:
        from asgiref.sync import sync_to_async

        key = await sync_to_async(log_in)("gone", active=False)
        handshake = scope(cookies=f"sessionid={key}", service="orders")
        assert await SessionIdentity().resolve(handshake) is None


async def test_session_middleware_is_used_where_there_is_one() -> None:
    user = get_user_model()(username="ann")
    handshake = {**scope(service="s"), "session": SessionStore("k" * 32), "user": user}
    found = await SessionIdentity().resolve(handshake)
    assert found == Identity("s", "ann")
    assert found is not None
    assert found.session_key == "k" * 32
    assert await SessionIdentity().resolve({**handshake, "user": AnonymousUser()}) is None


class ByPrimaryKey(SessionIdentity):
    def user_name(self, user: Any) -> str:
        return str(user.pk)


async def test_subclass_names_the_user_by_another_field() -> None:
    user = get_user_model()(username="ann", pk=7)
    handshake = {**scope(service="s"), "session": SessionStore("k" * 32), "user": user}
    assert await ByPrimaryKey().resolve(handshake) == Identity("s", "7")


# -- the list of resolvers -------------------------------------------------------------------


@pytest.fixture
def resolvers(settings: Any) -> Any:
    settings.WSGATEWAY_IDENTITY = [
        f"wsgateway.identity.{name}" for name in ("TokenIdentity", "CookieIdentity")
    ]
    return settings


@pytest.mark.usefixtures("resolvers")
async def test_first_resolver_that_knows_wins() -> None:
    cookies = "user=bob; service=s"
    token = f"token={make_token('s', 'ann')}"
    assert await resolve_identity(scope(cookies=cookies, query=token)) == Identity("s", "ann")
    assert await resolve_identity(scope(cookies=cookies)) == Identity("s", "bob")


@pytest.mark.usefixtures("resolvers")
async def test_refusal_ends_the_search() -> None:
    with pytest.raises(IdentityRefused, match="not valid"):
        await resolve_identity(scope(cookies="user=bob; service=s", query="token=junk"))


@pytest.mark.usefixtures("resolvers")
async def test_nobody_knows_is_not_authenticated() -> None:
    with pytest.raises(IdentityRefused) as caught:
        await resolve_identity(scope())
    assert caught.value.code == CloseCode.NOT_AUTHENTICATED


async def test_service_that_is_not_listed_is_forbidden(resolvers: Any) -> None:
    resolvers.WSGATEWAY_SERVICES = ["orders"]
    assert await resolve_identity(scope(cookies="user=bob; service=orders"))
    with pytest.raises(IdentityRefused) as caught:
        await resolve_identity(scope(cookies="user=bob; service=s"))
    assert caught.value.code == CloseCode.FORBIDDEN


# -- nobody ----------------------------------------------------------------------------------

NO_SESSION = "this session is not logged in, or has ended; log in again"
NO_READER = "nothing reads the token; add TokenIdentity to WSGATEWAY_IDENTITY"


@pytest.mark.parametrize(
    ("resolver", "handshake", "reason"),
    [
        (
            "SessionIdentity",
            {},
            "not logged in; log in first, or add TokenIdentity to WSGATEWAY_IDENTITY and send a "
            "token",
        ),
        ("SessionIdentity", {"query": "token=x"}, NO_READER),
        ("SessionIdentity", {"headers": [(b"authorization", b"Bearer x")]}, NO_READER),
        ("SessionIdentity", {"cookies": f"sessionid={'k' * 32}"}, NO_SESSION),
        (
            "TokenIdentity",
            {"cookies": f"sessionid={'k' * 32}"},
            "not logged in; log in first, or send a token",
        ),
    ],
)
async def test_socket_without_identity_reads_what_to_send_and_what_to_set(
    settings: Any, resolver: str, handshake: dict[str, Any], reason: str
) -> None:
    """With a token and the default setting, the text was "the socket has no identity; log in"."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.WSGATEWAY_IDENTITY = [f"wsgateway.identity.{resolver}"]
    with pytest.raises(IdentityRefused) as refused:
        await resolve_identity(scope(**handshake, service="orders"))
    assert refused.value.code is CloseCode.NOT_AUTHENTICATED
    assert refused.value.reason == reason
    assert len(reason.encode()) <= MAX_REASON
    assert f"WSGATEWAY_IDENTITY lists wsgateway.identity.{resolver}" in refused.value.cure


async def test_user_with_the_name_of_strangers_is_refused(settings: Any) -> None:
    """Everyone who was not logged in would have read the user's messages."""
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    with pytest.raises(IdentityRefused, match="anonymous"):
        await resolve_identity(scope(cookies="service=orders; user=(anonymous)"))


async def test_nobody_is_anonymous_but_a_reader_of_events() -> None:
    resolver, request = AnonymousIdentity(), {**scope(service="orders"), "type": "http"}
    found = await resolver.resolve(request)
    assert found is not None
    assert found.is_anonymous
    assert not Identity("orders", "ann").is_anonymous
    assert await resolver.resolve({**request, "type": "websocket"}) is None
    named = {**scope(service="orders", user="ann"), "type": "http"}
    assert await resolver.resolve(named) is None
