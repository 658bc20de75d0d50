"""Django REST framework's authentication classes decide whose socket it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from rest_framework import exceptions
from rest_framework.authentication import (
    BaseAuthentication,
    BasicAuthentication,
    SessionAuthentication,
    TokenAuthentication,
)

from tests.unit.test_checks import messages
from tests.unit.test_identity import scope
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity import DrfIdentity, Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import encode_token_protocol

pytestmark = pytest.mark.django_db(transaction=True)


class ByToken(TokenAuthentication):
    """REST framework's own, with tokens that need no table: the user's name backwards."""

    auth: ClassVar[Any] = None

    def authenticate_credentials(self, key: str) -> Any:
        user = get_user_model().objects.filter(username=key[::-1]).first()
        if user is None:
            raise exceptions.AuthenticationFailed("Invalid token.")
        return user, self.auth or key


class Details(BaseAuthentication):
    """As simplejwt refuses."""

    def authenticate(self, request: Any) -> Any:
        if "x-key" in request.headers:
            detail: Any = {"detail": "Token is expired", "code": "token_not_valid"}
            raise exceptions.AuthenticationFailed(detail)
        return None

    def authenticate_header(self, request: Any) -> str:
        return 'Bearer realm="api"'


class Classes(DrfIdentity):
    def authentication_classes(self) -> Any:
        return [SessionAuthentication, BasicAuthentication, Details, ByToken]


@pytest.fixture(autouse=True)
async def ann() -> Any:
    ByToken.auth = None
    user = get_user_model()(username="ann")
    user.set_unusable_password()
    await user.asave()
    return user


def headers(**values: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), v.encode()) for name, v in values.items()]
    return {**scope(headers=pairs, service="orders"), "path": "/ws/orders/"}


async def test_token_in_the_header_as_the_api_takes_it(ann: Any) -> None:
    found = await Classes().resolve(headers(authorization="Token nna"))
    assert found == Identity("orders", "ann")
    assert found is not None
    assert (found.user_id, found.auth_hash) == (str(ann.pk), ann.get_session_auth_hash())
    assert found.expires_at is None
    assert await Classes().resolve(headers()) is None


@pytest.mark.parametrize("where", ["query", "subprotocols"])
async def test_token_from_a_browser_gets_the_classes_own_keyword(where: str) -> None:
    handshake = headers()
    if where == "query":
        handshake["query_string"] = b"token=nna&device=tv"
    else:
        handshake["query_string"] = b"device=tv"
        handshake["subprotocols"] = ["wsgateway.v1", encode_token_protocol("nna")]
    assert await Classes().resolve(handshake) == Identity("orders", "ann", "tv")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"authorization": "Token junk"}, "Invalid token."),
        ({"x_key": "old"}, "Token is expired"),
        ({"authorization": "Basic !"}, "Invalid basic header."),
    ],
)
async def test_refusal_says_what_the_api_says(sent: dict[str, str], reason: str) -> None:
    with pytest.raises(IdentityRefused) as caught:
        await Classes().resolve(headers(**sent))
    assert caught.value.code is CloseCode.NOT_AUTHENTICATED
    assert caught.value.reason.startswith(reason)


async def test_inactive_user_is_refused_even_if_the_class_forgets_to(ann: Any) -> None:
    ann.is_active = False
    await ann.asave()
    with pytest.raises(IdentityRefused, match="not active"):
        await Classes().resolve(headers(authorization="Token nna"))


async def test_socket_ends_with_a_token_that_is_deleted() -> None:
    ByToken.auth = row = await Group.objects.acreate(name="stands for a token")
    found = await Classes().resolve(headers(authorization="Token nna"))
    assert found is not None
    assert found.credential == ("auth.Group", str(row.pk))
    assert str(row.pk) not in repr(found)


class Knox:
    expiry = datetime(2100, 1, 1, tzinfo=UTC)


class SimpleJwt:
    payload: ClassVar[dict[str, Any]] = {"exp": 4102444800}


@pytest.mark.parametrize("auth", [Knox(), SimpleJwt(), {"exp": 4102444800}])
async def test_socket_ends_with_a_token_that_expires(auth: Any) -> None:
    ByToken.auth = auth
    found = await Classes().resolve(headers(authorization="Token nna"))
    assert found is not None
    assert found.expires_at == 4102444800
    assert found.expires_in == pytest.approx(4102444800 - time.time(), abs=5)


def test_E012_without_rest_framework(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.DrfIdentity"]
    settings.INSTALLED_APPS = [each for each in settings.INSTALLED_APPS if "rest" not in each]
    assert "is not installed" in messages()["E012"]
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    assert "E012" not in messages()


def test_classes_of_the_project_are_asked() -> None:
    assert SessionAuthentication in DrfIdentity().authentication_classes()
