"""Signed tokens and cookies, which carry an identity."""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from django.core import signing
from django.http import HttpResponseBase
from django.utils.crypto import constant_time_compare, salted_hmac

from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused
from wsgateway.handshake import bearer_token, offered_token, parameter
from wsgateway.identity.base import DEFAULT_DEVICE, Identity, Scope
from wsgateway.identity.naming import name_of
from wsgateway.logins import token_account, user_with_id
from wsgateway.protocol.codes import CloseCode

__all__ = [
    "COOKIE_SALT",
    "TOKEN_SALT",
    "is_jwt",
    "make_token",
    "read_token",
    "sent_token",
    "set_identity_cookie",
    "token_in",
    "with_account",
]

TOKEN_SALT = "wsgateway.token"  # noqa: S105 - public: it keeps tokens and cookies apart
COOKIE_SALT = "wsgateway.cookie"

_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*\Z", re.ASCII)


def make_token(
    service: str, user: str | Any, device: str | None = None, *, max_age: float | None = None
) -> str:
    """Return a token that lets its holder connect as *user*; see `TokenIdentity`.

    Args:
        service: The only service that it is good for.
        user: A Django user, whose tokens end with the user, the password, and
            `wsgateway.log_out_everywhere`; or only a name.
        device: The only device that it is good for; None leaves the choice to the client.
        max_age: Seconds that it is valid; None means WSGATEWAY_TOKEN_MAX_AGE.

    Raises:
        IdentityRefused: A name cannot be used.
    """
    if isinstance(user, str):
        return _make_token(TOKEN_SALT, service, user, device, max_age)
    account = token_account(user)
    if account is None:
        raise IdentityRefused(CloseCode.NOT_AUTHENTICATED, "this account is not active")
    about = [account["user_id"], _fingerprint(account["auth_hash"]), time.time()]
    return _make_token(TOKEN_SALT, service, name_of(user), device, max_age, about)


def set_identity_cookie(
    response: HttpResponseBase,
    service: str,
    user: str,
    device: str | None = None,
    *,
    max_age: float | None = None,
    **options: Any,
) -> None:
    """Set the cookie that `SignedCookieIdentity` reads.

    Args:
        response: Gets the cookie: HttpOnly, SameSite=Lax, Secure unless DEBUG is on, and for the
            path of session cookies, SESSION_COOKIE_PATH.
        service: See `make_token`, as for the other arguments.
        user: The user's name.
        device: The device's name.
        max_age: Seconds that it is valid.
        **options: For ``response.set_cookie``, for example ``domain``.
    """
    age = settings.TOKEN_MAX_AGE if max_age is None else max_age
    value = _make_token(COOKIE_SALT, service, user, device, age)
    defaults: MutableMapping[str, Any] = {
        "path": settings.session_cookie_path,
        "httponly": True,
        "samesite": "Lax",
        "secure": not settings.debug,
    }
    response.set_cookie(settings.COOKIE_NAME, value, max_age=int(age), **{**defaults, **options})


def _make_token(
    salt: str,
    service: str,
    user: str,
    device: str | None,
    max_age: float | None,
    about: Sequence[Any] = (),
) -> str:
    Identity(service, user, device or DEFAULT_DEVICE)
    age = settings.TOKEN_MAX_AGE if max_age is None else max_age
    return signing.dumps([service, user, device, time.time() + age, *about], salt=salt)


def _fingerprint(auth_hash: str | None) -> str:
    """Return what a token, which anybody can read, says of the user's session auth hash."""
    return salted_hmac(TOKEN_SALT, auth_hash or "", algorithm="sha256").hexdigest()[:32]


def token_in(scope: Scope) -> str | None:
    """Return the token that a client sent; None without.

    Clients send it in the header ``Authorization: Bearer …``, in the list of subprotocols as
    ``wsgateway.token.<base64url of the token>``, or in the query, which access logs keep.

    Raises:
        IdentityRefused: It is malformed, or comes twice with different values.
    """
    return sent_token(scope) or bearer_token(scope)


def sent_token(scope: Scope) -> str | None:
    """Return the token that a client sent otherwise than in a header for tokens; None without.

    Raises:
        IdentityRefused: As `token_in`.
    """
    return parameter(scope, settings.TOKEN_PARAMETER) or offered_token(scope)


def is_jwt(token: str) -> bool:
    """Say whether *token* has the form of a JSON web token; ours do not. Source: RFC 7515, 3.1."""
    return _JWT.match(token) is not None


def read_token(token: str, salt: str, device: str | None) -> Identity:
    """Return whom *token* names.

    Raises:
        BadSignature: It is not ours; `SignatureExpired`: it was.
        IdentityRefused: It is good for another device only.
    """
    try:
        service, user, bound, expires, *about = signing.loads(token, salt=salt)
    except signing.BadSignature:
        raise
    except Exception as exc:  # base64, zlib, JSON: whatever a forged token trips over
        raise signing.BadSignature("malformed") from exc
    if time.time() >= expires:
        raise signing.SignatureExpired("expired")
    if bound and device not in (None, bound):
        raise IdentityRefused(
            CloseCode.FORBIDDEN,
            "the token names another device",
            "connect without ?device=, or make a token for that device",
        )
    identity = Identity(service, user, bound or device or DEFAULT_DEVICE, expires_at=expires)
    if not about:
        return identity
    user_id, fingerprint, issued_at = about
    return replace(identity, user_id=user_id, auth_hash=fingerprint, issued_at=issued_at)


def with_account(identity: Identity) -> Identity:
    """Return *identity*, which `read_token` has returned, with the user's present auth hash.

    Reads the database: call it in a thread.

    Raises:
        IdentityRefused: The user may not log in any more, has a new password, or another name.
    """
    user = user_with_id(identity.user_id)
    account = None if user is None else token_account(user)
    if account is not None and name_of(user) == identity.user:
        now = _fingerprint(account["auth_hash"])
        if constant_time_compare(now, identity.auth_hash or ""):
            return replace(identity, auth_hash=account["auth_hash"])
    raise IdentityRefused(
        CloseCode.NOT_AUTHENTICATED, "this token is no longer valid; log in again"
    )
