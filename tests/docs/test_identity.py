"""The code of docs/how-to/identity.md, run as it stands there."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.http import HttpResponse

from tests.pages import DocumentPage
from wsgateway.broker import runtime
from wsgateway.checks.identity import check_production_tokens, check_tokens
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.origins import require_origin
from wsgateway.identity import (
    Identity,
    SignedCookieIdentity,
    TokenIdentity,
    make_token,
    require_valid_token,
    resolve_identity,
)

PAGE = DocumentPage("how-to/identity.md")


def run(part: str) -> dict[str, Any]:
    """Return the names that a block of the page defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(PAGE.code(part), names)
    return names


def scope(**headers: str) -> dict[str, Any]:
    found = [(name.encode().replace(b"_", b"-"), v.encode()) for name, v in headers.items()]
    return {"type": "websocket", "headers": found, "query_string": b""}


@pytest.mark.django_db(transaction=True)
async def test_tokens_and_cookies_name_the_user() -> None:
    names = run("def token_for_robot")
    token = scope(authorization=f"Bearer {names['token_for_robot']()}")
    assert await TokenIdentity().resolve(token) == Identity("orders", "robot")
    user = await get_user_model().objects.acreate(username="ann")
    token = scope(authorization=f"Bearer {names['token_for'](user)}")
    assert await TokenIdentity().resolve(token) == Identity("orders", "ann")
    cookies = names["after_login"](None, HttpResponse()).cookies
    cookie = scope(cookie=cookies.output(header="").split(";")[0].strip())
    assert await SignedCookieIdentity().resolve(cookie) == Identity("orders", "ann")


@pytest.mark.django_db(transaction=True)
def test_view_logs_out_on_all_devices(settings: Any, rf: Any) -> None:
    settings.PUBSUB_BROKER = "memory"
    request = rf.post("/")
    request.user = user = get_user_model().objects.create(username="ann")
    token = make_token("orders", user)
    assert run("log_out_everywhere")["log_out_on_all_devices"](request).status_code == 302
    identity = async_to_sync(TokenIdentity().resolve)(scope(authorization=f"Bearer {token}"))
    assert identity is not None
    with pytest.raises(IdentityRefused, match="no longer valid"):
        runtime.call_sync(partial(require_valid_token, identity=identity))


async def test_resolver_by_api_key() -> None:
    resolver = run("class ByApiKey")["ByApiKey"]()
    assert await resolver.resolve(scope(x_api_key="letmein")) == Identity("orders", "robot")
    assert await resolver.resolve(scope()) is None
    with pytest.raises(IdentityRefused):
        await resolver.resolve(scope(x_api_key="wrong"))


@pytest.mark.django_db
def test_resolver_by_email() -> None:
    resolver = run("class ByEmail")["ByEmail"]()
    user = get_user_model().objects.create(username="ann", email="ann@example.com")
    assert resolver.get_user(resolver.user_name(user)) == user


def test_origins(settings: Any) -> None:
    settings.WSGATEWAY_ALLOWED_ORIGINS = run("ALLOWED_ORIGINS")["WSGATEWAY_ALLOWED_ORIGINS"]
    for origin in ("https://app.example.com", "https://a.example.org", "http://example.net:8000"):
        require_origin(scope(origin=origin))
    for origin in ("http://app.example.com", "https://example.com", "https://a.example.net"):
        with pytest.raises(IdentityRefused):
            require_origin(scope(origin=origin))


@pytest.mark.django_db(transaction=True)
async def test_own_api_s_tokens_name_the_user(settings: Any) -> None:
    import jwt

    values = {"__name__": "page", "SECRET_KEY": "a secret that is long enough for HS256"}
    exec(PAGE.code("JWT_USER_CLAIM"), values)
    for name, value in values.items():
        if name.startswith("WSGATEWAY_"):
            setattr(settings, name, value)
    assert check_tokens() == []
    user = await get_user_model().objects.acreate(username="ann")
    claims = {"user_id": str(user.pk), "exp": 9e9}
    token = jwt.encode(claims, values["SECRET_KEY"], "HS256")
    handshake = {
        **scope(authorization=f"Bearer {token}"),
        "url_route": {"kwargs": {"service": "orders"}},
    }
    assert await resolve_identity(handshake) == Identity("orders", "ann")


def test_provider_s_settings_pass_the_checks(settings: Any) -> None:
    for name, value in run("JWT_JWKS_URL").items():
        if name.startswith("WSGATEWAY_"):
            setattr(settings, name, value)
    assert check_tokens() == check_production_tokens() == []


async def test_resolver_of_a_partner() -> None:
    resolver = run("class PartnerIdentity")["PartnerIdentity"]()
    assert resolver.config().audience == ["orders"]
    assert await resolver.account_of("x") == {"user": "partner:x"}


@pytest.mark.parametrize("last", ['identity.TokenIdentity",\n', "identity.DrfIdentity"])
def test_list_of_resolvers_can_be_used(settings: Any, last: str) -> None:
    from wsgateway.checks.identity import check_resolvers

    settings.WSGATEWAY_IDENTITY = run(last)["WSGATEWAY_IDENTITY"]
    assert check_resolvers() == []
