"""Why a connection failed: every failure in words, with its cure.

The only place that reads such errors. ``docs/reference/errors.md`` and
``docs/how-to/troubleshooting.md`` list them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple

from nats.errors import Error as NatsError

from wsgateway.broker.addresses import Address
from wsgateway.broker.nats.options import ConnectionOptions

__all__ = ["Cause", "cause_of", "find_stranger"]

CLIENT_PORT = "use the port for clients, 4222 unless the server's configuration says otherwise"
CHECK_URL = "check host and port in NATS_BROKER_URL, and the network"
IDENTIFY_WITHIN = 1.0
"""Seconds that a server which is not NATS has to show what it is."""

_SAID = {
    "user authentication expired": "renew the credentials",
    "account authentication expired": "renew the account's JWT",
    "user authentication revoked": "issue new credentials",
    "authentication timeout": "raise the server's auth_timeout, or see why the network is slow",
    "maximum": "raise that limit in the server or the account, or end other clients",
    "permissions violation": "grant the permissions that docs/how-to/nats-permissions.md lists",
    "secure connection - tls required": "write tls:// in NATS_BROKER_URL",
    "attempted to connect to": CLIENT_PORT,
    "the server offers no tls": (
        "turn on TLS in the server, or write nats:// in NATS_BROKER_URL and unset "
        "WSGATEWAY_NATS_TLS_CA and WSGATEWAY_NATS_TLS_CERT"
    ),
}
"""How an error begins, in lower case, and its cure."""

_PROBE = b"PING / HTTP/1.0\r\n\r\n"
"""What makes others show what they are.

A complete request of HTTP: what looks like HTTP/0.9 gets a page without a status line. Without a
Host header, which Redis takes for an attack.
"""
_STRANGERS = (
    (b"-ERR wrong number of arguments", "a Redis server", CLIENT_PORT),
    (b"-NOAUTH", "a Redis server", CLIENT_PORT),
    (b"HTTP/", "an HTTP server", CLIENT_PORT),
    (b"AMQP", "a RabbitMQ server", CLIENT_PORT),
    (b"SSH-", "an SSH server", CLIENT_PORT),
    (b"\x15\x03", "a server that wants TLS first", "turn off handshake_first in its tls block"),
)
"""How servers that are not NATS answer the probe, what they are, and the cure."""


class Cause(NamedTuple):
    """Why a connection failed.

    Attributes:
        reason: What happened; never empty, without a secret.
        cure: What to do about it; may be empty.
    """

    reason: str
    cure: str = ""


def cause_of(
    exc: Exception, address: Address, options: ConnectionOptions, info: Mapping[str, object]
) -> Cause:
    """Return why an attempt to connect failed.

    Args:
        exc: What ended it.
        address: Where.
        options: How.
        info: The server's INFO; empty if none came.
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _certificate(exc.verify_message)
    if info.get("tls_verify") and isinstance(exc, (ssl.SSLError, ConnectionError)):
        return Cause("the server refuses the TLS handshake", _own_certificate_cure(options))
    if isinstance(exc, ssl.SSLError):
        return Cause(f"TLS failed: {(exc.reason or str(exc)).replace('_', ' ').lower()}", CHECK_URL)
    return _network(exc, address, options) or _from_text(exc, address, options)


def _network(exc: Exception, address: Address, options: ConnectionOptions) -> Cause | None:
    start = "start the server, or correct host and port in NATS_BROKER_URL"
    start, check = (
        f"{cure}, {options.unreachable_cure}".removesuffix(", ") for cure in (start, CHECK_URL)
    )
    if isinstance(exc, socket.gaierror):
        return Cause(f"the name {address.host!r} does not resolve: {exc.strerror}", check)
    if isinstance(exc, ConnectionRefusedError):
        return Cause("connection refused", start)
    if isinstance(exc, OSError) and exc.strerror:
        # With a file name it is a certificate or a key, otherwise the network
        if exc.filename:
            return Cause(f"{exc.strerror}: {exc.filename!r}", "correct its path or its mode")
        return Cause(exc.strerror, check)
    if isinstance(exc, TimeoutError):
        return Cause("no answer in time", check)
    return None


def _certificate(why: str) -> Cause:
    if "mismatch" in why:
        cure = "set WSGATEWAY_NATS_TLS_HOSTNAME to a name that the certificate holds"
    elif "expired" in why or "not yet valid" in why:
        cure = "renew it, or correct this machine's clock"
    else:
        cure = "set WSGATEWAY_NATS_TLS_CA to the certificate of the authority that signed it"
    return Cause(f"the server's certificate is not accepted: {why}", cure)


def _own_certificate_cure(options: ConnectionOptions) -> str:
    if not options.tls_cert:
        return (
            "it wants a client certificate: set WSGATEWAY_NATS_TLS_CERT and WSGATEWAY_NATS_TLS_KEY"
        )
    return f"see in its log why it does not accept the certificate in {options.tls_cert!r}"


def _from_text(exc: Exception, address: Address, options: ConnectionOptions) -> Cause:
    if not isinstance(exc, (NatsError, ValueError, OSError)) or not str(exc):
        return Cause(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
    text = str(exc).removeprefix("nats: ").strip("' ") or "the server gives no reason"
    if text.lower().startswith("authorization violation"):
        return Cause(text, _login_cure(address, options))
    for beginning, cure in _SAID.items():
        if text.lower().startswith(beginning):
            return Cause(text, cure)
    return Cause(text)


def _login_cure(address: Address, options: ConnectionOptions) -> str:
    """Return what to do about a login that the server refuses; names where it comes from."""
    if options.credentials:
        return f"the server does not accept the user in {options.credentials!r}"
    if options.nkey_seed:
        return f"the server does not know the key in {options.nkey_seed!r}"
    if address.has_login:
        what = "token" if address.token else "user and password"
        return (
            f"correct {what} in NATS_BROKER_URL, and percent-encode special characters there, "
            "for example @ as %40"
        )
    if options.user:
        return "correct WSGATEWAY_NATS_USER and WSGATEWAY_NATS_PASSWORD"
    if options.token:
        return "correct WSGATEWAY_NATS_TOKEN"
    return (
        "the server wants a login and none is set: put nats://USER:PASSWORD@HOST:PORT into "
        "NATS_BROKER_URL, or set WSGATEWAY_NATS_USER, …_TOKEN, …_CREDENTIALS or …_NKEY_SEED"
    )


async def find_stranger(address: Address) -> Cause | None:
    """Return what listens at *address* instead of NATS, which would have greeted us.

    Returns:
        None if the connection cannot be made now, or NATS greets after all.
    """
    answer = b""
    try:
        async with asyncio.timeout(IDENTIFY_WITHIN):
            reader, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, TimeoutError):
        return None
    try:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(IDENTIFY_WITHIN):
                writer.write(_PROBE)
                answer = await reader.read(64)
    finally:
        writer.transport.abort()
    if answer.startswith(b"INFO "):
        return None
    for beginning, name, cure in _STRANGERS:
        if answer.startswith(beginning):
            return Cause(f"{name} answers there, not NATS", cure)
    if answer:
        return Cause("what answers there is not NATS", CLIENT_PORT)
    return Cause(
        "no answer in time",
        "something accepts connections there and says nothing: NATS that hangs, NATS with "
        f"handshake_first in its tls block, or another program; {CLIENT_PORT}",
    )
