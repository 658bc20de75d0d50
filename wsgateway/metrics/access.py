"""Who may see metrics: those who have the token, or come from one of the networks."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from django.utils.crypto import constant_time_compare

from wsgateway.conf import settings

__all__ = ["Asker", "Refusal", "is_forwarded", "is_restricted", "refusal_of"]

FORWARDED = ("cf-connecting-ip", "forwarded", "true-client-ip", "via", "x-client-ip", "x-real-ip")
"""Headers that proxies add, in lower case, besides all that begin with ``x-forwarded-``."""


class Asker(NamedTuple):
    """Who asks for metrics.

    Attributes:
        address: Of the connection; "" if it has none.
        authorization: The header.
        is_forwarded: Whether a proxy says that it asks for somebody else.
    """

    address: str
    authorization: str
    is_forwarded: bool


class Refusal(NamedTuple):
    """Why somebody does not get metrics.

    Attributes:
        status: Of the HTTP response.
        text: What to do.
    """

    status: int
    text: str


def is_forwarded(headers: Iterable[str]) -> bool:
    """Say whether a request with *headers*, names in any case, came through a proxy that says so.

    Any such header is enough: many a proxy is told to add ``X-Forwarded-Proto`` and nothing else.
    """
    names = [name.lower() for name in headers]
    return any(name.startswith("x-forwarded-") or name in FORWARDED for name in names)


def is_restricted() -> bool:
    """Say whether the settings name a token or networks; without either, the site has no page."""
    return bool(settings.METRICS_TOKEN or settings.METRICS_NETWORKS)


def refusal_of(asker: Asker) -> Refusal | None:
    """Return why *asker* is refused, by settings that name a token or networks; None if not."""
    token = settings.METRICS_TOKEN
    scheme, _, given = asker.authorization.partition(" ")
    if token and scheme.lower() == "bearer" and constant_time_compare(given.strip(), token):
        return None
    if _is_near(asker):
        return None
    if token:
        return Refusal(
            401, "send the header 'Authorization: Bearer' with the value of WSGATEWAY_METRICS_TOKEN"
        )
    if asker.is_forwarded:
        return Refusal(
            403,
            "a proxy forwarded this request, so its network is not known; ask the gateway "
            "directly, or set WSGATEWAY_METRICS_TOKEN and send it",
        )
    return Refusal(403, f"{asker.address or 'your address'} is not in WSGATEWAY_METRICS_NETWORKS")


def _is_near(asker: Asker) -> bool:
    """Say whether the asker's own connection comes from one of the networks.

    What a proxy says about its client proves nothing: a client can write the same header.
    """
    if asker.is_forwarded:
        return False
    try:
        address: IPv4Address | IPv6Address = ip_address(asker.address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ip_network(each) for each in settings.METRICS_NETWORKS)
