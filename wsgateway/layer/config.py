"""Where the servers are, in any of the spellings that channels_redis' users know."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from wsgateway.broker.addresses import Address

__all__ = ["server_urls"]


def server_urls(servers: Any) -> list[str]:
    """Return URLs; an empty list means that the settings say where.

    Args:
        servers: None, one server, or a list. A server is a URL, a (host, port) pair, or a dict
            with an ``address`` (or ``host`` and ``port``).

    Raises:
        ImproperlyConfigured: Something else, or a URL that is not NATS'.
    """
    if servers is None:
        return []
    if isinstance(servers, (str, dict)) or _is_pair(servers):
        servers = [servers]
    return [_url(server) for server in servers]


def _is_pair(server: Any) -> bool:
    return isinstance(server, tuple) and len(server) == 2 and isinstance(server[1], int)


def _url(server: Any) -> str:
    if isinstance(server, dict):
        server = server.get("address") or (server.get("host", "127.0.0.1"), server.get("port"))
        return _url(server)
    if isinstance(server, (list, tuple)) and len(server) == 2:
        return Address(str(server[0]), int(server[1] or 4222)).url
    if not isinstance(server, str):
        raise ImproperlyConfigured(f"{server!r} is not a NATS server; give 'nats://host:4222'")
    try:
        Address.parse(server)
    except ValueError as exc:
        raise ImproperlyConfigured(
            f"the channel layer's server is not the URL of a NATS server: {exc}; "
            "give 'nats://host:4222'"
        ) from None
    return server
