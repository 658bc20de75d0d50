"""The code of docs/how-to/identity.md, run as it stands there."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.http import HttpResponse

from tests.pages import DocumentPage
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway.origins import require_origin
from wsgateway.identity import Identity, SignedCookieIdentity, TokenIdentity

PAGE = DocumentPage("how-to/identity.md")


def run(part: str) -> dict[str, Any]:
    """Return the names that a block of the page defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(PAGE.code(part), names)
    return names


def scope(**headers: str) -> dict[str, Any]:
    found = [(name.encode().replace(b"_", b"-"), v.encode()) for name, v in headers.items()]
    return {"type": "websocket", "headers": found, "query_string": b""}


async def test_tokens_and_cookies_name_the_user() -> None:
    names = run("def token_for_ann")
    token = scope(authorization=f"Bearer {names['token_for_ann']()}")
    assert await TokenIdentity().resolve(token) == Identity("orders", "ann")
    cookies = names["after_login"](None, HttpResponse()).cookies
    cookie = scope(cookie=cookies.output(header="").split(";")[0].strip())
    assert await SignedCookieIdentity().resolve(cookie) == Identity("orders", "ann")


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


def test_list_of_resolvers_can_be_used(settings: Any) -> None:
    from wsgateway.checks.identity import check_resolvers

    settings.WSGATEWAY_IDENTITY = run("WSGATEWAY_IDENTITY")["WSGATEWAY_IDENTITY"]
    assert check_resolvers() == []
