"""What a websocket's handshake says: cookies, query parameters, route. Junk is refused.

Names that end up in an `Identity` are read here strictly: a parameter or cookie that comes twice
with two values is ambiguous, and the wrong guess would be somebody else's mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from django.http import parse_cookie

from wsgateway.exceptions import IdentityRefused
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subprotocols import TOKEN_PREFIX, tokens_in

__all__ = ["bearer_token", "cookie", "header", "offered_token", "parameter", "route"]

Scope = Mapping[str, Any]

MAX_PARAMETERS = 100


def header(scope: Scope, name: bytes) -> list[bytes]:
    """Return every value of a header; *name* in lower case."""
    return [value for key, value in scope.get("headers", ()) if key.lower() == name]


def cookie(scope: Scope, name: str) -> str | None:
    """Return a cookie's value, or None.

    Bytes that are not UTF-8 become lone surrogates, which no `Identity` takes: another site's
    strange cookie must not keep a user out.

    Raises:
        IdentityRefused: It comes twice, with different values.
    """
    text = b";".join(header(scope, b"cookie")).decode("utf-8", "surrogateescape")
    pairs = (parse_cookie(chunk) for chunk in text.split(";"))
    return _only(name, [pair[name] for pair in pairs if name in pair], "cookie")


def parameter(scope: Scope, name: str) -> str | None:
    """Return a query parameter's value, or None if it is missing or empty.

    Raises:
        IdentityRefused: The query is malformed, or has it twice with different values.
    """
    try:
        query = scope.get("query_string", b"").decode()
        pairs = parse_qsl(query, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as exc:  # UnicodeDecodeError too
        text = f"the query string is malformed, or has more than {MAX_PARAMETERS} parameters"
        raise IdentityRefused(CloseCode.BAD_REQUEST, text) from exc
    return _only(name, [value for key, value in pairs if key == name], "query parameter")


def _only(name: str, values: list[str], what: str) -> str | None:
    if len(set(values)) > 1:
        raise IdentityRefused(
            CloseCode.BAD_REQUEST, f"{what} {name!r} has {len(values)} different values; send one"
        )
    return values[0] if values else None


def bearer_token(scope: Scope) -> str | None:
    """Return the token of ``Authorization: Bearer …``, or None."""
    for value in header(scope, b"authorization"):
        kind, _, token = value.decode("latin-1").partition(" ")
        if kind.lower() == "bearer":
            return token.strip()
    return None


def offered_token(scope: Scope) -> str | None:
    """Return the token in the list of subprotocols, or None.

    Raises:
        IdentityRefused: It is malformed, or there are two different ones.
    """
    try:
        tokens = tokens_in(scope.get("subprotocols") or ())
    except ValueError as exc:
        text = f"{TOKEN_PREFIX}… must hold the token as base64url"
        raise IdentityRefused(CloseCode.BAD_REQUEST, text) from exc
    return _only(f"{TOKEN_PREFIX}…", tokens, "subprotocol")


def route(scope: Scope) -> dict[str, str]:
    """Return ``service`` and ``user`` as far as the URL's path names them."""
    kwargs = scope.get("url_route", {}).get("kwargs", {})
    return {part: kwargs[part] for part in ("service", "user") if kwargs.get(part)}
